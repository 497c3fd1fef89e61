//! Sockets between a host and a plugin: addresses as go-plugin writes them, dialling, listening.

use std::{
    fs::{self, Permissions},
    io,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use tempfile::NamedTempFile;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixListener, UnixStream},
    time::{sleep, timeout},
};

use crate::{
    Error,
    guard::is_below,
    limits::{DIAL_PAUSE, DIAL_WAIT, SOCKET_PATH_BYTES_MAX},
    logs::shown,
};

/// Only the user itself may connect, wherever the socket lies.
const SOCKET_MODE: u32 = 0o600;

/// Whoever gets as far as the folder may connect.
const OPEN_SOCKET_MODE: u32 = 0o666;

/// A place on this machine where a plugin, or a host, takes connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A Unix socket, by its absolute path.
    Unix(PathBuf),
    /// A port of the loopback interface.
    Tcp(SocketAddr),
}

/// The user at the other end of a Unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// This process's own.
    Own,
    /// Another one: a plugin's that has a user of its own.
    User(u32),
    /// The plugin's below this guard, as one of its own if it has that, else as this process's.
    Plugin { user: Option<u32>, guard: u32 },
    /// This process's own, or root: the host of a plugin that has a user of its own. Root needs no
    /// trick to make a plugin do something.
    OwnOrRoot,
}

/// Both directions of a connection, encrypted or not.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection of any kind.
pub(crate) type BoxIo = Box<dyn Io>;

impl Address {
    /// Reads what a plugin wrote. Fails unless it is a place on this machine; the error has no more
    /// than the beginning of what was written, on one line.
    ///
    /// A path may lie anywhere: plugins before go-plugin 1.5.0 do not know of the host's folder and
    /// listen in the folder for temporary files. The one who listens is checked when it is dialled.
    pub(crate) fn parse(network: &str, address: &str) -> Result<Self, Error> {
        let parsed = match network {
            "unix" => parse_path(address),
            "tcp" => parse_port(address),
            _ => Err("the network is neither unix nor tcp".to_owned()),
        };
        parsed.map_err(|reason| Error::Address { address: shown(address), reason })
    }

    /// Network and address, as go-plugin writes them.
    pub(crate) fn parts(&self) -> (&'static str, String) {
        match self {
            Self::Unix(path) => ("unix", path.display().to_string()),
            Self::Tcp(address) => ("tcp", address.to_string()),
        }
    }

    /// Connects to a socket of this process's user; see [`Self::dial_to`].
    #[cfg(test)]
    pub(crate) async fn dial(&self) -> Result<BoxIo, Error> {
        self.dial_to(Owner::Own).await
    }

    /// Connects. Fails when nobody listens there, when another user does, and after [`DIAL_WAIT`].
    pub(crate) async fn dial_to(&self, owner: Owner) -> Result<BoxIo, Error> {
        let dialled = timeout(DIAL_WAIT, self.connect(owner)).await;
        let dialled = dialled.map_err(|_| Error::Late { what: "dialling", limit: DIAL_WAIT })?;
        dialled.map_err(|error| Error::Unreachable {
            address: self.parts().1,
            reason: error.to_string(),
        })
    }

    async fn connect(&self, owner: Owner) -> io::Result<BoxIo> {
        match self {
            Self::Unix(path) => {
                let stream = connect_unix(path).await?;
                check_listener(&stream, owner)?;
                Ok(Box::new(stream))
            }
            Self::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                // Calls are small and whole: waiting to fill a segment only delays them.
                stream.set_nodelay(true)?;
                Ok(Box::new(stream))
            }
        }
    }
}

fn parse_path(address: &str) -> Result<Address, String> {
    let path = Path::new(address);
    if address.len() > SOCKET_PATH_BYTES_MAX {
        Err(format!("a socket's path has at most {SOCKET_PATH_BYTES_MAX} bytes"))
    } else if !path.is_absolute() || address.contains('\0') {
        Err("a socket's path is absolute".to_owned())
    } else {
        Ok(Address::Unix(path.to_owned()))
    }
}

/// A plugin must not make its host dial another machine.
fn parse_port(address: &str) -> Result<Address, String> {
    // The one name that is taken, and never looked up.
    let numeric = match address.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}"),
        None => address.to_owned(),
    };
    let parsed: SocketAddr =
        numeric.parse().map_err(|_| "it is no IP address with a port".to_owned())?;
    if !parsed.ip().to_canonical().is_loopback() {
        Err("a plugin listens at the loopback interface only, such as 127.0.0.1".to_owned())
    } else if parsed.port() == 0 {
        Err("0 is no port".to_owned())
    } else {
        Ok(Address::Tcp(parsed))
    }
}

/// Unlike TCP, a Unix socket refuses at once when its queue is full.
async fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(DIAL_PAUSE).await,
            connected => return connected,
        }
    }
}

/// Fails when another user listens, or another process than the plugin's where that is asked for.
/// The plugin names the path, so it could name the socket of
/// somebody else, which its host may use and the plugin may not. The system tells who called
/// `listen`, whatever lies at the path by now; the file itself need not be looked at. Who listens
/// at a port cannot be told; there, certificates show it.
fn check_listener(stream: &UnixStream, owner: Owner) -> io::Result<()> {
    let listener = stream.peer_cred()?.uid();
    let own = rustix::process::geteuid().as_raw();
    let (is_it, expected) = match owner {
        Owner::Own | Owner::Plugin { user: None, .. } => (listener == own, own),
        Owner::User(user) | Owner::Plugin { user: Some(user), .. } => (listener == user, user),
        Owner::OwnOrRoot => (listener == own || listener == ROOT, own),
    };
    if is_it {
        return check_process(stream, owner);
    }
    let reason = format!("user {listener} listens there, and not user {expected}");
    Err(io::Error::new(io::ErrorKind::PermissionDenied, reason))
}

/// Fails when the process at the other end, which called `listen` or `connect`, is not the
/// plugin's: another plugin of the same user, for instance, whose socket this one names as its own.
fn check_process(stream: &UnixStream, owner: Owner) -> io::Result<()> {
    let Owner::Plugin { guard, .. } = owner else { return Ok(()) };
    let process = stream.peer_cred()?.pid().and_then(|pid| u32::try_from(pid).ok());
    if process.is_some_and(|process| is_below(process, guard)) {
        return Ok(());
    }
    let reason = "a process that is none of the plugin's is at the other end";
    Err(io::Error::new(io::ErrorKind::PermissionDenied, reason))
}

const ROOT: u32 = 0;

/// A Unix socket of ours. It is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: NamedTempFile<UnixListener>,
    address: Address,
    /// The one who connects.
    peer: Owner,
}

impl Listener {
    /// Listens in a folder, at a new and short name. Fails when the folder's path is relative, not
    /// in UTF-8 or too long for a socket, and when nothing can be made in it. It needs the runtime
    /// of tokio.
    pub(crate) fn bind(folder: &Path) -> Result<Self, Error> {
        Self::bind_for(Owner::Own, folder)
    }

    /// The same, for another user to connect to if it is one: then the folder's permissions decide
    /// who else may.
    pub(crate) fn bind_for(owner: Owner, folder: &Path) -> Result<Self, Error> {
        let mode = match owner {
            Owner::Own | Owner::OwnOrRoot | Owner::Plugin { user: None, .. } => SOCKET_MODE,
            Owner::User(_) | Owner::Plugin { user: Some(_), .. } => OPEN_SOCKET_MODE,
        };
        let failed =
            |reason: String| Error::Address { address: folder.display().to_string(), reason };
        if !folder.is_absolute() || folder.to_str().is_none() {
            return Err(failed("the path of a socket's folder is absolute, in UTF-8".to_owned()));
        }
        let socket =
            tempfile::Builder::new().prefix("p").make_in(folder, |path| listen(path, mode));
        let socket = socket.map_err(|error| failed(error.to_string()))?;
        let address = Address::Unix(socket.path().to_owned());
        Ok(Self { socket, address, peer: owner })
    }

    /// The next connection, however long it takes; one of a process that is none of the plugin's
    /// is closed, where it was bound for a plugin. Cancel-safe.
    pub(crate) async fn accept(&self) -> io::Result<BoxIo> {
        loop {
            let (stream, _) = self.socket.as_file().accept().await?;
            match check_process(&stream, self.peer) {
                Ok(()) => return Ok(Box::new(stream)),
                Err(error) => tracing::debug!(%error, "a connection is closed"),
            }
        }
    }

    /// The place to dial.
    pub(crate) fn address(&self) -> &Address {
        &self.address
    }
}

fn listen(path: &Path, mode: u32) -> io::Result<UnixListener> {
    if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        let reason = format!("a socket's path has at most {SOCKET_PATH_BYTES_MAX} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[test]
    fn an_address_in_an_error_is_short_and_on_one_line() {
        let title = "\u{1b}]0;x\u{7}\nforged";
        for address in [title.to_owned(), title.repeat(400), "x".repeat(16_000)] {
            let error = Address::parse("tcp", &address).unwrap_err().to_string();
            assert!(!error.contains(char::is_control), "{error:?}");
            assert!(error.chars().count() < 300, "{error}");
        }
    }

    #[test]
    fn addresses_are_on_this_machine() {
        let longest = format!("/{}", "a".repeat(SOCKET_PATH_BYTES_MAX - 1));
        let too_long = format!("{longest}a");
        for (network, address) in [
            ("unix", "/tmp/plugin1234"),
            ("unix", longest.as_str()),
            ("tcp", "127.0.0.1:10000"),
            ("tcp", "[::1]:10000"),
            ("tcp", "127.8.9.1:1"),
            ("tcp", "[::ffff:127.0.0.1]:10000"),
        ] {
            let parsed = Address::parse(network, address).unwrap();
            assert_eq!(parsed.parts(), (network, address.to_owned()), "{address}");
        }
        let named = Address::parse("tcp", "localhost:10000").unwrap();
        assert_eq!(named.parts(), ("tcp", "127.0.0.1:10000".to_owned()));
        for (network, address) in [
            ("unix", ""),
            ("unix", "plugin1234"),
            ("unix", "@plugin"),
            ("unix", "\0plugin"),
            ("unix", "/tmp/a\0b"),
            ("unix", too_long.as_str()),
            ("tcp", ""),
            ("tcp", "10000"),
            ("tcp", "127.0.0.1"),
            ("tcp", "127.0.0.1:0"),
            ("tcp", "127.0.0.1:70000"),
            ("tcp", "0.0.0.0:10000"),
            ("tcp", "[::]:10000"),
            ("tcp", "192.0.2.1:10000"),
            ("tcp", "169.254.169.254:80"),
            ("tcp", "example.com:80"),
            ("tcp", "localhost.example.com:80"),
            ("udp", "127.0.0.1:10000"),
            ("", "/tmp/plugin1234"),
        ] {
            let parsed = Address::parse(network, address);
            assert!(matches!(parsed, Err(Error::Address { .. })), "{network} {address:?}");
        }
    }

    #[tokio::test]
    async fn a_listener_is_dialled_until_it_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let listener = Listener::bind(folder.path()).unwrap();
        let other = Listener::bind(folder.path()).unwrap();
        assert_ne!(listener.address(), other.address());
        let address = listener.address().clone();
        let (network, path) = address.parts();
        assert_eq!(Address::parse(network, &path).unwrap(), address);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, SOCKET_MODE);
        let (near, far) = tokio::join!(address.dial(), listener.accept());
        let (mut near, mut far) = (near.unwrap(), far.unwrap());
        near.write_all(b"hello").await.unwrap();
        let mut heard = [0; 5];
        far.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"hello");
        drop(listener);
        assert!(!Path::new(&path).exists());
        assert!(matches!(address.dial().await, Err(Error::Unreachable { .. })));
        assert!(Path::new(&other.address().parts().1).exists());
    }

    #[tokio::test]
    async fn the_listener_has_to_be_the_right_user() {
        let folder = tempfile::tempdir().unwrap();
        let listener = Listener::bind_for(Owner::User(7), folder.path()).unwrap();
        let (_, path) = listener.address().parts();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, OPEN_SOCKET_MODE);
        let own = rustix::process::geteuid().as_raw();
        for (owner, is_right) in [
            (Owner::Own, true),
            (Owner::OwnOrRoot, true),
            (Owner::User(own), true),
            (Owner::User(own + 1), false),
        ] {
            let dialled = listener.address().dial_to(owner).await;
            assert_eq!(dialled.is_ok(), is_right, "{owner:?}");
            if let Err(error) = dialled {
                assert!(error.to_string().contains("listens there"), "{error}");
            }
        }
    }

    #[tokio::test]
    async fn the_other_end_has_to_be_of_the_right_plugin() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let (right, wrong) = (std::process::id(), child.id());
        let plugin = |guard| Owner::Plugin { user: None, guard };
        let listener = Listener::bind_for(plugin(right), folder.path()).unwrap();
        let (near, far) =
            tokio::join!(listener.address().dial_to(plugin(right)), listener.accept());
        assert!(near.is_ok() && far.is_ok());
        let refused = listener.address().dial_to(plugin(wrong)).await.err().unwrap().to_string();
        assert!(refused.contains("none of the plugin's"), "{refused}");

        let listener = Listener::bind_for(plugin(wrong), folder.path()).unwrap();
        let mut near = listener.address().dial().await.unwrap();
        let mut byte = [0];
        tokio::select! {
            _ = listener.accept() => panic!("a stranger was taken"),
            closed = near.read(&mut byte) => assert_eq!(closed.unwrap(), 0),
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[tokio::test]
    async fn only_a_socket_is_dialled() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "text").unwrap();
        for path in [file, folder.path().to_owned(), folder.path().join("none")] {
            let dialled = Address::Unix(path).dial().await;
            assert!(matches!(dialled, Err(Error::Unreachable { .. })));
        }
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Address::Tcp(port.local_addr().unwrap());
        assert!(address.dial().await.is_ok());
        drop(port);
        assert!(matches!(address.dial().await, Err(Error::Unreachable { .. })));
    }

    #[tokio::test]
    async fn a_folder_that_cannot_hold_a_socket_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let long = folder.path().join("a".repeat(SOCKET_PATH_BYTES_MAX));
        fs::create_dir(&long).unwrap();
        for folder in [long.as_path(), Path::new("here"), Path::new("/nowhere/at/all")] {
            assert!(matches!(Listener::bind(folder), Err(Error::Address { .. })), "{folder:?}");
        }
    }
}
