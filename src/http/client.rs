//! Asking: one request at a time over a connection.

use std::{io, time::Duration};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Request, Response, body::Bytes, client::conn::http1, header, header::HeaderValue};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody takes connections there.
    #[error("{0}")]
    Connect(io::Error),
    /// The other side broke off, or what it says is no HTTP.
    #[error("{0}")]
    Broken(hyper::Error),
    /// The answer is larger than the caller takes, in bytes.
    #[error("the answer has more than {0} bytes")]
    TooLarge(usize),
    /// The answer was not there, or not whole, in the caller's time.
    #[error("there is no whole answer within {0:?}")]
    Late(Duration),
}

/// What a caller takes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Time for connecting, asking and reading the whole answer.
    pub within: Duration,
    /// Most bytes of the answer's body.
    pub bytes_max: usize,
}

/// Sends a request to `HOST:PORT` over a connection of its own, and returns the answer, whatever its
/// status. Fails when there is none within the limits.
pub async fn ask(
    authority: &str,
    request: Request<Bytes>,
    limits: Limits,
) -> Result<Response<Bytes>, Error> {
    let answered = async {
        let mut connection = Connection::open(authority).await?;
        connection.send(request, limits.bytes_max).await
    };
    let answered = tokio::time::timeout(limits.within, answered).await;
    answered.map_err(|_| Error::Late(limits.within))?
}

/// A connection for one request after the other. It is closed when this is dropped.
pub struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    host: HeaderValue,
    _driven: AbortOnDropHandle<hyper::Result<()>>,
}

impl Connection {
    /// Connects to `HOST:PORT`. Fails when nobody takes the connection; bounding the time is the
    /// caller's matter.
    pub async fn open(authority: &str) -> Result<Self, Error> {
        let host = HeaderValue::try_from(authority)
            .map_err(|error| Error::Connect(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
        let stream = TcpStream::connect(authority).await.map_err(Error::Connect)?;
        // Requests are small and whole: waiting to fill a segment only delays them.
        stream.set_nodelay(true).map_err(Error::Connect)?;
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(Error::Broken)?;
        Ok(Self { sender, host, _driven: AbortOnDropHandle::new(tokio::spawn(connection)) })
    }

    /// Waits until another request can be sent. Returns false when none can.
    pub async fn is_ready(&mut self) -> bool {
        self.sender.ready().await.is_ok()
    }

    /// Sends a request and returns the answer, with at most so many bytes, whatever its status. Fails
    /// when there is none; another request is better sent over another connection then.
    pub async fn send(
        &mut self,
        mut request: Request<Bytes>,
        bytes_max: usize,
    ) -> Result<Response<Bytes>, Error> {
        request.headers_mut().insert(header::HOST, self.host.clone());
        let answer = self.sender.send_request(request.map(Full::new)).await;
        let (head, body) = answer.map_err(Error::Broken)?.into_parts();
        let body = Limited::new(body, bytes_max).collect().await.map_err(|error| match error
            .downcast::<hyper::Error>(
        ) {
            Ok(error) => Error::Broken(*error),
            Err(_) => Error::TooLarge(bytes_max),
        })?;
        Ok(Response::from_parts(head, body.to_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use hyper::StatusCode;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    /// The answer to a client that takes 8 bytes within half a second, from somebody who says this and then
    /// nothing.
    async fn told(says: &'static str) -> Result<(StatusCode, Bytes), Error> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let authority = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await;
            stream.write_all(says.as_bytes()).await.unwrap();
            tokio::time::sleep(Duration::from_secs(60)).await;
        });
        let limits = Limits { within: Duration::from_millis(500), bytes_max: 8 };
        let request = Request::get("/").body(Bytes::new()).unwrap();
        let answer = ask(&authority, request, limits).await?;
        Ok((answer.status(), answer.into_body()))
    }

    #[tokio::test]
    async fn an_answer_is_whole_and_within_its_limits() {
        let whole = "HTTP/1.1 503 x\r\ncontent-length: 8\r\n\r\n12345678";
        let chunked = "HTTP/1.1 503 x\r\ntransfer-encoding: chunked\r\n\r\n\
                       4\r\n1234\r\n4\r\n5678\r\n0\r\n\r\n";
        for says in [whole, chunked] {
            let answer = told(says).await.unwrap();
            assert_eq!(answer, (StatusCode::SERVICE_UNAVAILABLE, "12345678".into()));
        }
        let large = told("HTTP/1.1 200 x\r\ncontent-length: 9\r\n\r\n123456789").await;
        assert!(matches!(large, Err(Error::TooLarge(8))), "{large:?}");
        for late in ["", "HTTP/1.1 200 x\r\n", "HTTP/1.1 200 x\r\ncontent-length: 8\r\n\r\n1234"] {
            let late = told(late).await;
            assert!(matches!(late, Err(Error::Late(_))), "{late:?}");
        }
        let other = told("+OK\r\n").await;
        assert!(matches!(other, Err(Error::Broken(_))), "{other:?}");
        let nobody = Connection::open("127.0.0.1:1").await;
        assert!(matches!(nobody, Err(Error::Connect(_))));
    }
}
