//! Methods of a venue, declared once.

/// Declares functions that call methods of a venue.
///
/// Without types a function takes any parameters and returns what the caller asks for; with types it takes and returns those. The first
/// argument is the [`Client`](crate::Client), by any of its handles.
///
/// ```no_run
/// use serde_json::{Value, json};
/// use zen_websocket::{Config, JsonRpc, connect, rpc};
///
/// rpc! {
///     /// The book of an instrument, down to a depth.
///     pub fn get_order_book => "public/get_order_book";
///     /// The time of the venue, in milliseconds since the Unix epoch.
///     pub fn get_time() -> u64 => "public/get_time";
///     fn get_currencies((&str, bool)) -> Vec<Value> => "public/get_currencies";
/// }
///
/// let (client, inbox) = connect(Config::new("wss://www.example.com/ws").dialect(JsonRpc::default()))?;
/// let book: Value = get_order_book(&client, json!({ "instrument_name": "BTC-PERPETUAL", "depth": 10 }))?;
/// let time = get_time(&client)?;
/// let currencies = get_currencies(&client.urgent(), ("all", true))?;
/// # Ok::<(), zen_websocket::Error>(())
/// ```
#[macro_export]
macro_rules! rpc {
    () => {};
    ($(#[$meta:meta])* $visibility:vis fn $name:ident => $method:literal $(; $($rest:tt)*)?) => {
        $(#[$meta])*
        $visibility fn $name<T: $crate::__private::DeserializeOwned>(
            client: &$crate::Client,
            params: impl $crate::__private::Serialize,
        ) -> $crate::Result<T> {
            client.call($method, params)
        }
        $($crate::rpc! { $($rest)* })?
    };
    ($(#[$meta:meta])* $visibility:vis fn $name:ident() -> $result:ty => $method:literal $(; $($rest:tt)*)?) => {
        $(#[$meta])*
        $visibility fn $name(client: &$crate::Client) -> $crate::Result<$result> {
            client.call($method, ())
        }
        $($crate::rpc! { $($rest)* })?
    };
    ($(#[$meta:meta])* $visibility:vis fn $name:ident($params:ty) -> $result:ty => $method:literal $(; $($rest:tt)*)?) => {
        $(#[$meta])*
        $visibility fn $name(client: &$crate::Client, params: $params) -> $crate::Result<$result> {
            client.call($method, params)
        }
        $($crate::rpc! { $($rest)* })?
    };
}

/// What the macro names, so that its users need not depend on it.
#[doc(hidden)]
pub mod __private {
    pub use serde::Serialize;
    pub use serde::de::DeserializeOwned;
}
