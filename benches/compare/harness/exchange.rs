//! The server: blocking std sockets, one thread per connection, in a process and on a core of its own, plain and TLS 1.3.
//!
//! The path of the upgrade request says what a connection does; see [`Peer::serve`].

use std::env;
use std::io::{self, BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::version::TLS13;

use crate::harness::contender::Target;
use crate::harness::crowd;
use crate::harness::machine;
use crate::harness::peer::Peer;

/// The argument that makes the benchmark's own binary a server.
pub(crate) const ARGUMENT: &str = "--serve";

/// Small, because there are many.
const STACK: usize = 128 << 10;

/// The server process, which ends with this.
pub(crate) struct Server {
    child: Child,
    /// Plain and TLS.
    addresses: [SocketAddr; 2],
    /// Where thousands of connections go; see [`crowd`].
    crowd: [SocketAddr; 2],
    root: Arc<[u8]>,
}

impl Server {
    pub(crate) fn start() -> Self {
        let mut child = Command::new(env::current_exe().expect("our own path"))
            .arg(ARGUMENT)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("the server says its addresses");
        let words: Vec<&str> = line.split_whitespace().collect();
        let [plain, tls, crowd_plain, crowd_tls, root] = words[..] else { panic!("the server says: {line}") };
        let address = |word: &str| word.parse().expect("an address");
        Self {
            child,
            addresses: [address(plain), address(tls)],
            crowd: [address(crowd_plain), address(crowd_tls)],
            root: from_hex(root).into(),
        }
    }

    /// Where to find this path, with its slash; see [`Peer::serve`].
    pub(crate) fn target(&self, path: &str, tls: bool) -> Target {
        self.target_at(self.addresses, path, tls)
    }

    /// Where thousands of connections find this path; see [`crowd`].
    pub(crate) fn crowd(&self, path: &str, tls: bool) -> Target {
        self.target_at(self.crowd, path, tls)
    }

    fn target_at(&self, addresses: [SocketAddr; 2], path: &str, tls: bool) -> Target {
        Target { address: addresses[usize::from(tls)], path: path.to_owned(), root: tls.then(|| self.root.clone()) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the server process does, until the process that started it is gone.
#[expect(clippy::print_stdout, reason = "the addresses go to the parent through a pipe")]
pub(crate) fn run() {
    machine::pin(0);
    let (config, root) = tls_config();
    let crowd = crowd::start(config.clone());
    let addresses = [None, Some(config)].map(|tls| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("bound");
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let tls = tls.clone();
                // A client that leaves ends its thread.
                let _ = thread::Builder::new().stack_size(STACK).spawn(|| Peer::accept(stream, tls)?.serve());
            }
        });
        address
    });
    println!("{} {} {} {} {}", addresses[0], addresses[1], crowd[0], crowd[1], to_hex(&root));
    let _ = io::stdin().read(&mut [0]);
}

/// A certificate for the loopback address, with session tickets, and the root that signed it as DER.
fn tls_config() -> (Arc<ServerConfig>, Vec<u8>) {
    let mut root = CertificateParams::new([]).expect("no names");
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let root = CertifiedIssuer::self_signed(root, KeyPair::generate().expect("randomness")).expect("a good certificate");
    let mut leaf = CertificateParams::new([Ipv4Addr::LOCALHOST.to_string(), "localhost".to_owned()]).expect("good names");
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate().expect("randomness");
    let leaf = leaf.signed_by(&key, &root).expect("a good certificate");
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has suites for TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(vec![leaf.into()], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
        .expect("the key is the certificate's");
    config.ticketer = ring::Ticketer::new().expect("randomness");
    (Arc::new(config), root.der().to_vec())
}

pub(crate) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn from_hex(text: &str) -> Vec<u8> {
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { panic!("an odd number of digits") };
    let digit = |digit: u8| char::from(digit).to_digit(16).expect("a hexadecimal digit") as u8;
    pairs.iter().map(|[high, low]| digit(*high) << 4 | digit(*low)).collect()
}
