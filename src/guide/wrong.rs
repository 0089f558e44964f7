//! What went wrong? From what one sees to its cause.
//!
//! Every loss, failed dial and end carries its cause as an [`Error`](crate::Error), which reads the same in the
//! [`Event`](crate::Event), in the log and in the [telemetry](crate::telemetry); [`Error::explain`](crate::Error::explain) adds what to do.
//! Where no error says it, [`Client::metrics`](crate::Client::metrics) and [`Client::heartbeat`](crate::Client::heartbeat) do, on a
//! closed connection too. To see what is said on one connection, turn on [`Config::debug`](crate::Config::debug).
//!
//! # It does not connect
//!
//! | `connect` returns, or [`DialFailed`](crate::Event::DialFailed) says | cause | do |
//! | --- | --- | --- |
//! | [`Config`](crate::Error::Config) | A setting is wrong; nothing was opened. | Correct the one that is named. |
//! | [`Resolve`](crate::Error::Resolve), or [`DialTimeout`](crate::Error::DialTimeout) while [resolving](crate::Phase::Resolve) | The name is wrong, the name server does not answer, or the hook takes too long. | Look the name up by hand; see how long [`on_dial`](crate::Config::on_dial) takes. |
//! | [`DialHook`](crate::Error::DialHook) | Your hook refused or panicked. | Read its own error, which is in the message. |
//! | [`Connect`](crate::Error::Connect) | Nobody listens there, or [`bind_address`](crate::SocketOptions::bind_address) is of another family. | Check host, port and server. |
//! | `DialTimeout` while [connecting](crate::Phase::Connect) | A firewall drops the packets. | Try from another machine. |
//! | [`Tls`](crate::Error::Tls) with `certificate: true` | Expired, for another host, or of an issuer that is not trusted; or the clock here is wrong. | Check those; trust a private issuer by [`root_certificate`](crate::Config::root_certificate). |
//! | `Tls` with `certificate: false` | The port speaks no TLS, or wants a [client certificate](crate::Config::client_certificate). | Check `wss` against `ws`, and the port. |
//! | [`Handshake`](crate::Error::Handshake) | What answers is no WebSocket server, or chose a subprotocol that was not offered. | Check scheme, port and path; read the reason. |
//! | [`Refused`](crate::Error::Refused) | The server answered with an HTTP status. | Read [`Refusal::body`](crate::Refusal::body); a redirect is in its header `Location`. |
//! | `DialTimeout` while [upgrading](crate::Phase::Upgrade) | The port takes connections and says nothing. | Check that it is the right one. |
//! | [`LoginRefused`](crate::Error::LoginRefused) | Wrong credentials, a wrong clock, or too many logins. | Compare [`LoginStep::unix`](crate::LoginStep::unix) with the venue's time. |
//! | `DialTimeout` while [logging in](crate::Phase::Login) | The dialect does not see the venue's reply as one. | With [`debug`](crate::Config::debug), see whether anything is `received`; test [`Dialect::classify`](crate::Dialect::classify) with it. |
//! | [`Throttled`](crate::Error::Throttled) | [`dial_limit`](crate::Config::dial_limit) holds the dial back. | Wait; it dials by itself. |
//! | [`OnReactor`](crate::Error::OnReactor) | A call that waits was made where nothing may wait, in a handler for instance. | Use [`open`](crate::open), [`start_call`](crate::Context::start_call), [`start_close`](crate::Context::start_close). |
//! | [`Stopped`](crate::Error::Stopped) | The reactor was stopped, or its driver dropped. | Use another [`Reactor`](crate::Reactor). |
//! | [`Exhausted`](crate::Error::Exhausted) | As many dials failed as [`connect_attempts`](crate::Config::connect_attempts) allows. | Read its `last`. |
//!
//! # It dials again and again
//!
//! Read the `cause` of each [`Lost`](crate::Event::Lost); `connection.lost` tells beside it who [ended](crate::telemetry::Closer) the wire
//! and how long it was open. [`Metrics::redials`](crate::Metrics::redials) counts.
//!
//! | cause | it means | do |
//! | --- | --- | --- |
//! | [`PeerClosed`](crate::Error::PeerClosed) with 1000 or 1001 | The venue is done with the wire: a daily restart, an age limit. | Nothing. |
//! | with 1002, 1003 or 1007 | The venue cannot read what was sent. | Look at the last `sent` lines under [`debug`](crate::Config::debug). |
//! | with 1008, or 3000 and more | The venue's own rule: credentials, too many messages, an unknown channel. | Read the reason and the venue's documentation; set a [`rate_limit`](crate::Config::rate_limit). |
//! | with 1009 | A message of yours is too long for the venue. | Send shorter ones. |
//! | with 1011 to 1014 | The server fails, restarts, or has too many clients. | Nothing; pauses grow up to [`max_backoff`](crate::Config::max_backoff). |
//! | [`Disconnected`](crate::Error::Disconnected), [`Io`](crate::Error::Io) | The stream ended without a Close frame; other libraries call it 1006. | If it recurs at equal intervals, something between cuts idle connections: shorten [`heartbeat_interval`](crate::Config::heartbeat_interval). |
//! | [`Silent`](crate::Error::Silent) | A ping was not answered and not a byte came. | If only quiet feeds have it, the venue answers no pings: use those of its own, [`Dialect::ping`](crate::Dialect::ping), or a longer [`patience`](crate::Config::patience). |
//! | [`DataSilent`](crate::Error::DataSilent) | No message for [`data_silence`](crate::Config::data_silence). | See [below](#connected-but-no-data); or the feed is that quiet. |
//! | [`Protocol`](crate::Error::Protocol) with 1009 | A message of the venue's is longer than [`max_message`](crate::Config::max_message). | Raise it. |
//! | `Protocol` with 1002 or 1007 | The venue or what lies between breaks RFC 6455. | Report it, with the reason. |
//! | [`Tls`](crate::Error::Tls) | Bytes were changed or lost on the way, or the server sent an alert. | Read its source. |
//! | [`LoginRefused`](crate::Error::LoginRefused) | The refresh of the login was refused or not answered. | Compare its time with [`confirm_timeout`](crate::Config::confirm_timeout). |
//! | [`Replaced`](crate::Error::Replaced) | The program asked for it. | Look for [`Client::reconnect`](crate::Client::reconnect). |
//!
//! A login that is refused again and again is [`DialFailed`](crate::Event::DialFailed) each time. If it can never succeed, let the dialect
//! call it fatal ([`JsonRpc::fatal_codes`](crate::JsonRpc::fatal_codes)), so that a first connect ends at once.
//!
//! # Connected, but no data
//!
//! | look at | it means | do |
//! | --- | --- | --- |
//! | [`messages_in`](crate::Metrics::messages_in) stands still | The venue sends nothing. | Subscribe on every [`Open`](crate::Event::Open), or by [`Client::subscribe`](crate::Client::subscribe), which does so itself. |
//! | [`channels`](crate::Metrics::channels) are `pending` or `wanted` | Not confirmed: the state is [`Open`](crate::State::Open), not [`Live`](crate::State::Live). | Look at [`Subscription::standings`](crate::Subscription::standings), and whether the rate limit holds the request back ([`queued`](crate::Metrics::queued)). |
//! | [`Event::Rejected`](crate::Event::Rejected), [`ChannelsRejected`](crate::Error::ChannelsRejected) | The venue refuses the channel. | Check its name, and whether it needs a login. From [`start_subscribe`](crate::Client::start_subscribe) it stays wanted and is asked for again. |
//! | [`discarded`](crate::Metrics::discarded) grows | It comes, and nobody holds the inbox. | Keep it. |
//! | `messages_in` grows, `discarded` does not | It goes elsewhere. | Look at the inbox given to [`Channels::inbox`](crate::Channels::inbox), and at [`Event::Notice`](crate::Event::Notice) and [`Event::Request`](crate::Event::Request). |
//!
//! # Data stops
//!
//! | look at | it means | do |
//! | --- | --- | --- |
//! | [`inbox_depth`](crate::Metrics::inbox_depth) is at its capacity; `traffic.blocked` | Nobody takes events, and under [`Overflow::Block`](crate::Overflow::Block) the socket is not read. | Take them faster, or choose another [`overflow`](crate::Config::overflow). |
//! | [`ChannelSilent`](crate::Event::ChannelSilent) | One channel is silent; it is subscribed anew. | If it recurs, the limit of [`Channels::silence`](crate::Channels::silence) is too short. |
//! | the [round trip](crate::HeartbeatStatus::rtt) is fresh, and nothing else comes | The wire lives, the feed does not. | Set [`data_silence`](crate::Config::data_silence), or a silence per channel. |
//! | [`longest_stall`](crate::ReactorMetrics::longest_stall) | A handler holds up its reactor. | See [there](#the-reactor-stalls). |
//!
//! # Messages are missing
//!
//! | look at | it means | do |
//! | --- | --- | --- |
//! | [`Gap`](crate::Event::Gap) without a channel; [`dropped`](crate::Metrics::dropped) | An inbox was full. | Take events faster; use a [`BatchInbox`](crate::BatchInbox) or a handler. |
//! | `Gap` with a channel | The venue's sequence has a hole. | Take a new snapshot, or [`GapPolicy::Resubscribe`](crate::GapPolicy::Resubscribe). |
//! | [`Lost`](crate::Event::Lost), then [`Open`](crate::Event::Open) | What came between is nowhere. | What was built before is stale; build it anew. |
//! | a [`ConflatingInbox`](crate::ConflatingInbox) | Older messages of a key are replaced. | Use another for what must be complete. |
//! | [`Unsent`](crate::Event::Unsent) | Yours: accepted, and not left before the wire ended. | Decide anew; nothing is sent again. |
//!
//! # A send is refused
//!
//! | error | it means | do |
//! | --- | --- | --- |
//! | [`Full`](crate::Error::Full) | The peer or the network takes less than you send ([`Client::unsent`](crate::Client::unsent)). | Send less; nothing was sent. |
//! | [`Throttled`](crate::Error::Throttled), [`QueueFull`](crate::Error::QueueFull) | The rate limit; [`Client::rate_status`](crate::Client::rate_status) shows which. | Choose a [`Throttle`](crate::Throttle); send what must not wait by [`Client::urgent`](crate::Client::urgent). |
//! | [`NotConnected`](crate::Error::NotConnected) | No wire, or no login on it yet, or [`hold_until`](crate::Config::hold_until) waits for a channel. | Wait for [`Open`](crate::Event::Open), or for [`Live`](crate::Event::Live). |
//! | [`Stale`](crate::Error::Stale) | Another wire than the one you decided on. | Decide anew. |
//! | [`Closed`](crate::Error::Closed) | The connection has ended. | The last [`Closed`](crate::Event::Closed) says why. |
//!
//! # Calls fail
//!
//! | look at | it means | do |
//! | --- | --- | --- |
//! | [`Timeout`](crate::Error::Timeout) with `sent: false` | It waited for the rate limit all the time. | Look at [`queued`](crate::Metrics::queued). |
//! | `Timeout` with `sent: true`, then [`Unmatched`](crate::Event::Unmatched) with its id | The reply came late. | Raise [`call_timeout`](crate::Config::call_timeout); [`Client::latency`](crate::Client::latency) says how far. |
//! | `Timeout`, and the reply comes as a [`Message`](crate::Event::Message) | The dialect does not see it as one. | Test [`Dialect::classify`](crate::Dialect::classify) with it. |
//! | `Unmatched` again and again | The venue repeats itself, or changes the id: 1 is not `"1"`. | Compare [`Id`](crate::Id)s. |
//! | [`Rejected`](crate::Error::Rejected), [`Reply`](crate::Error::Reply) | The venue says no; the reply is not of the type that was asked for. | Read it raw by [`request_raw`](crate::Client::request_raw). |
//! | [`Lost`](crate::Error::Lost) | The wire ended first. | Ask [`may_have_been_sent`](crate::Error::may_have_been_sent). |
//! | [`TooManyCalls`](crate::Error::TooManyCalls), [`Duplicate`](crate::Error::Duplicate) | Too many wait, or one with this id; nothing was sent. | Look at [`calls_pending`](crate::Metrics::calls_pending). |
//!
//! # Latency grows
//!
//! | what grows | cause | do |
//! | --- | --- | --- |
//! | [`Latencies::kernel`](crate::Latencies::kernel) | The reactor comes late. | See [there](#the-reactor-stalls); give a hot feed a reactor of its own. |
//! | [`inbox_depth`](crate::Metrics::inbox_depth) | The consumer comes late. | See [how to receive](crate::guide#which-way-to-receive). |
//! | [`Latencies::encode`](crate::Latencies::encode) | Sends wait for each other or for the rate limit. | Look at [`pressure`](crate::Metrics::pressure). |
//! | [`Latencies::write`](crate::Latencies::write), [`unsent`](crate::Metrics::unsent) | The kernel takes no more: the peer reads too slowly. | Send less. |
//! | [`Latencies::pings`](crate::Latencies::pings) | The path or the venue is slow. | Dial anew by [`Client::reconnect`](crate::Client::reconnect). |
//!
//! # The reactor stalls
//!
//! The log says `kept its reactor busy for …` and `reactor.stall` names the connection, as
//! [`ReactorMetrics::longest_stall`](crate::ReactorMetrics::longest_stall) does. Its handler, its dialect, a hook, an observer or the logger
//! takes long, or the machine gave its thread no core. None of them may wait, not even for a lock whose holder waits for the reactor. What
//! takes long belongs on a thread behind an [`Inbox`](crate::Inbox), or on a [`Reactor`](crate::Reactor) of its own. This crate's own
//! calls that wait answer [`OnReactor`](crate::Error::OnReactor) there instead of hanging for ever.
//!
//! # Memory grows
//!
//! [`Metrics::memory`](crate::Metrics::memory) is what a connection holds, [`inbox_depth`](crate::Metrics::inbox_depth) what waits beside
//! it. Each loss brings a few events into a full inbox too, so a program that only sends drops its inbox. Entries to be recorded are
//! [`RecorderStatus::waiting`](crate::RecorderStatus::waiting), up to [`queue_max`](crate::Recorder::queue_max). If none of these grows,
//! look at what handlers and dialects keep.
//!
//! # A recording is incomplete
//!
//! | look at | it means | do |
//! | --- | --- | --- |
//! | [`failure`](crate::RecorderStatus::failure); the log says `recording to … failed` | The file cannot be written; it is tried again every second. | Read the reason. |
//! | [`dropped`](crate::RecorderStatus::dropped); `recorder.dropped` | The disk did not keep up. | Raise [`queue_max`](crate::Recorder::queue_max). |
//! | entries without content | A login, or a [mask](crate::Recorder::mask). | As intended. |
//!
//! # It ends
//!
//! An [`Inbox`](crate::Inbox) ends behind [`Closed`](crate::Event::Closed): iteration stops, `recv` answers
//! [`Error::Closed`](crate::Error::Closed).
//!
//! | `cause` | it means | do |
//! | --- | --- | --- |
//! | `None` | This program closed it, or dropped its last [`Client`](crate::Client). | Hold the client as long as the connection: `let (_, inbox)` drops it. |
//! | [`InboxFull`](crate::Error::InboxFull) | It was full under [`Overflow::Disconnect`](crate::Overflow::Disconnect). | Take events faster. |
//! | [`Panicked`](crate::Error::Panicked) | A handler, a dialect or a cost function did. | Mend it; the message is in the error. |
//! | [`Stopped`](crate::Error::Stopped) | Its reactor was stopped. | Open it on another. |
//! | [`Exhausted`](crate::Error::Exhausted), or the cause of a loss | No dial is left of [`redial_attempts`](crate::Config::redial_attempts). | Allow more; the default is without limit. |
