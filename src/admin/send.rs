//! Sends a sample as the vendor would.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::{Request, Response, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};

use super::own_tls::to_self;
use super::sample::Sample;
use super::wire::{Answered, TriggerRequest, Triggered};
use crate::config::Listen;

/// The vendor gives up after 5 s; a little more shows a late answer as what it is.
const TIMEOUT: Duration = Duration::from_secs(10);
const ANSWER_MAX: usize = 4 << 10;

type Headers = [(String, String)];

/// Where a sample goes.
#[derive(Clone, Debug)]
pub enum Target {
    /// One of our own listeners.
    Intake {
        listen: Listen,
        path: String,
        tls: bool,
    },
    Url(String),
}

impl Target {
    /// # Errors
    /// It is none of `http` or `https`.
    pub fn url(url: &str) -> Result<Target, String> {
        let uri: Uri = url
            .parse()
            .map_err(|e| format!("{url:?} is no URL: {e}; it starts with http:// or https://"))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none() {
            return Err(format!(
                "{url:?} is no URL to send to; it starts with http:// or https://"
            ));
        }
        Ok(Target::Url(url.to_owned()))
    }

    fn name(&self) -> String {
        match self {
            Target::Intake { listen: Listen::Tcp(address), path, tls } => {
                format!("{}://{}{path}", scheme(*tls), reachable(*address))
            }
            Target::Intake { listen: Listen::Unix(socket), .. } => {
                format!("unix:{}", socket.display())
            }
            Target::Url(url) => url.clone(),
        }
    }
}

/// Signs a sample and sends it, twice if asked to.
///
/// # Errors
/// One line: what, why, what to do next.
pub async fn send(
    target: &Target,
    request: &TriggerRequest,
    sample: &Sample,
    headers: &Headers,
) -> Result<Triggered, String> {
    let copy = || async {
        match target {
            Target::Intake { listen, path, tls } => {
                to_listener(listen, path, *tls, sample, headers).await
            }
            Target::Url(url) => to_url(url, sample, headers).await,
        }
    };
    let answer = copy().await?;
    let again = if request.duplicate { Some(copy().await?) } else { None };
    Ok(Triggered {
        event_id: sample.event_id.clone(),
        kind: sample.kind.clone(),
        to: target.name(),
        answer,
        again,
    })
}

/// To one of our own listeners; a wildcard address is reached over loopback.
async fn to_listener(
    listen: &Listen,
    path: &str,
    tls: bool,
    sample: &Sample,
    headers: &Headers,
) -> Result<Answered, String> {
    let started = Instant::now();
    match listen {
        Listen::Tcp(address) => {
            let address = reachable(*address);
            let to = format!("{}://{address}{path}", scheme(tls));
            let request = request(path, Some(&address.to_string()), sample, headers)?;
            let sent = within(&to, async {
                let stream = tokio::net::TcpStream::connect(address).await?;
                if tls {
                    over(to_self(stream, address.ip()).await?, request).await
                } else {
                    over(stream, request).await
                }
            });
            read(&to, started, sent.await?).await
        }
        Listen::Unix(socket) => {
            let to = format!("unix:{}", socket.display());
            let request = request(path, Some("localhost"), sample, headers)?;
            let sent = within(&to, async {
                over(tokio::net::UnixStream::connect(socket).await?, request).await
            });
            read(&to, started, sent.await?).await
        }
    }
}

async fn to_url(url: &str, sample: &Sample, headers: &Headers) -> Result<Answered, String> {
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_provider_and_native_roots(rustls::crypto::ring::default_provider())
        .map_err(|e| {
            format!("cannot read the system's certificates: {e}; install ca-certificates")
        })?
        .https_or_http()
        .enable_http1()
        .build();
    let client = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(connector);
    let started = Instant::now();
    let request = request(url, None, sample, headers)?;
    let answer = within(url, async { Ok(client.request(request).await?) }).await?;
    read(url, started, answer).await
}

fn request(
    uri: &str,
    host: Option<&str>,
    sample: &Sample,
    headers: &Headers,
) -> Result<Request<Full<Bytes>>, String> {
    let mut builder = Request::post(uri);
    for (name, value) in headers {
        builder = builder.header(name, value);
    }
    if let Some(host) = host {
        builder = builder.header("host", host);
    }
    let body = Full::new(Bytes::copy_from_slice(&sample.body));
    builder.body(body).map_err(|e| format!("cannot send to {uri:?}: {e}"))
}

type SendError = Box<dyn std::error::Error + Send + Sync>;

async fn within<T>(
    to: &str,
    send: impl Future<Output = Result<T, SendError>>,
) -> Result<T, String> {
    match tokio::time::timeout(TIMEOUT, send).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(e)) => {
            let cause = deepest(e.as_ref());
            Err(format!("cannot send to {to}: {cause}; check that something listens there"))
        }
        Err(_) => Err(format!(
            "cannot send to {to}: no answer within {} s; check what listens there",
            TIMEOUT.as_secs()
        )),
    }
}

/// The cause that says most: hyper's own words are "client error (Connect)".
fn deepest(error: &(dyn std::error::Error + 'static)) -> String {
    let mut at = error;
    while let Some(source) = at.source() {
        at = source;
    }
    at.to_string()
}

async fn over<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, SendError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender.send_request(request).await?)
}

async fn read(to: &str, started: Instant, answer: Response<Incoming>) -> Result<Answered, String> {
    let took = started.elapsed();
    let status = answer.status().as_u16();
    let body = within(to, Limited::new(answer.into_body(), ANSWER_MAX).collect());
    // The status is what counts: an answer that is too long or cut off has no text here.
    let body = body.await.map(|body| body.to_bytes()).unwrap_or_default();
    Ok(Answered {
        status,
        body: String::from_utf8_lossy(&body).into_owned(),
        took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
    })
}

fn scheme(tls: bool) -> &'static str {
    if tls { "https" } else { "http" }
}

fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_is_reached_over_loopback() {
        let of = |text: &str| reachable(text.parse().unwrap()).to_string();
        assert_eq!(of("0.0.0.0:3000"), "127.0.0.1:3000");
        assert_eq!(of("[::]:3000"), "[::1]:3000");
        assert_eq!(of("192.0.2.1:3000"), "192.0.2.1:3000");
    }
}
