//! `http`: a request per event.
//!
//! One client per handler keeps connections open. No redirects are followed and no proxy variables
//! read, so the address that is checked is the address that gets the event.

mod answer;
mod request;

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{HeaderName, HeaderValue};
use hyper::{Method, Request};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::address::{Refused, Resolver, is_allowed};
use super::redact::{Redactor, shorten};
use super::{BuildContext, Call, Common, Handler, Report, seconds};
use crate::clock::BoxFuture;
use crate::config::{self, ForwardSign};
use crate::delivery::Outcome;
use answer::Answer;
pub(super) use request::Plan;
use request::{Body, Signers, Target};

/// Shorter than what servers usually grant, so that few requests meet a connection just closed.
const IDLE: Duration = Duration::from_secs(20);

/// A server may put much into what we quote of it.
const REASON_MAX_BYTES: usize = 1000;

pub(super) struct Http {
    plan: Plan,
    sign: Option<ForwardSign>,
    signers: Signers,
    permanent: Vec<u16>,
    allow_private: bool,
    delivery_headers: bool,
    client: Client<HttpsConnector<HttpConnector<Resolver>>, Full<Bytes>>,
    common: Common,
}

impl Handler for Http {
    fn run(&self, call: Call) -> BoxFuture<'_, Report> {
        Box::pin(self.attempt(call))
    }
}

impl Http {
    pub(super) fn new(
        http: &config::Http,
        plan: Plan,
        ctx: &BuildContext<'_>,
        concurrency: usize,
        common: Common,
    ) -> Result<Http, String> {
        let mut tcp =
            HttpConnector::new_with_resolver(Resolver { allow_private: http.allow_private });
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(
                ctx.trust.client_config(http.ca.as_deref()).map_err(|e| format!("http.ca: {e}"))?,
            )
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(concurrency)
            .build(connector);
        Ok(Http {
            plan,
            sign: http.sign,
            signers: Signers::new(ctx.sources),
            permanent: http.permanent.clone(),
            allow_private: http.allow_private,
            delivery_headers: http.delivery_headers,
            client,
            common,
        })
    }

    async fn attempt(&self, call: Call) -> Report {
        let prepared = match self.prepare(&call) {
            Ok(prepared) => prepared,
            Err(outcome) => return Report::bare(self.clean(outcome)),
        };
        let Prepared { request, account, target, password } = prepared;
        let mut redactor = self.common.redactor.clone();
        for secret in password.iter().flatten() {
            redactor.add(secret);
        }
        let started = tokio::time::Instant::now();
        let sent = tokio::time::timeout(call.deadline, self.client.request(request)).await;
        let (outcome, response) = match sent {
            Err(_) => (Outcome::retry(format!("timed out after {}", seconds(call.deadline))), None),
            Ok(Err(error)) => (Outcome::retry(answer::failure(&error, &target.authority)), None),
            Ok(Ok(response)) => {
                let left = call.deadline.saturating_sub(started.elapsed());
                let answer = Answer::read(response, left, &redactor, self.common.kept_bytes).await;
                (answer.outcome(&self.permanent, call.now), Some(answer.account))
            }
        };
        let mut request = redactor.clean(&account);
        shorten(&mut request, self.common.kept_bytes);
        Report { outcome: clean(&redactor, outcome), request: Some(request), response }
    }

    fn clean(&self, outcome: Outcome) -> Outcome {
        clean(&self.common.redactor, outcome)
    }

    /// Everything that is decided before the first packet.
    fn prepare(&self, call: &Call) -> Result<Prepared, Outcome> {
        let context = super::template::context(
            &call.event,
            call.message.as_deref(),
            &self.common.name,
            call.attempt,
        );
        let engine = &self.common.engine;
        let target = self.plan.target(engine, &context).map_err(Outcome::reject)?;
        self.allowed(&target)?;
        let Body { bytes, content_type } =
            self.plan.body(engine, &context, &call.event.new).map_err(Outcome::reject)?;
        let mut headers = request::standard_headers(content_type.as_ref());
        if self.delivery_headers {
            headers.extend(request::delivery_headers(call));
        }
        if let Some(sign) = self.sign {
            let signed = self
                .signers
                .headers(sign, &call.event.new, &bytes, call.now)
                .map_err(Outcome::retry)?;
            headers.extend(signed);
        }
        if let Some(basic) = target.basic() {
            headers.push(("authorization".to_owned(), basic));
        }
        let own = self.plan.headers(engine, &context).map_err(Outcome::reject)?;
        headers.retain(|(name, _)| !own.iter().any(|(o, _)| o.eq_ignore_ascii_case(name)));
        headers.extend(own);

        let account = self.plan.account(&target, &headers, bytes.len());
        let mut request = Request::new(Full::new(bytes));
        *request.method_mut() = self.plan.method.clone();
        *request.uri_mut() = target.uri.clone();
        for (name, value) in headers {
            let name = HeaderName::from_bytes(name.as_bytes());
            if let (Ok(name), Some(value)) = (name, header_value(&value)) {
                request.headers_mut().append(name, value);
            }
        }
        let password = target.password().zip(target.basic()).map(|(password, header)| {
            let sent = header.strip_prefix("Basic ").unwrap_or(&header).to_owned();
            [password, sent]
        });
        Ok(Prepared { request, account, target, password })
    }

    /// The address policy for an address written in the URL, which no resolver sees. What the
    /// configuration spells out is meant; what comes out of an event is not.
    fn allowed(&self, target: &Target) -> Result<(), Outcome> {
        let host = target.uri.host().unwrap_or_default();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        match bare.parse::<IpAddr>() {
            Ok(address)
                if !is_allowed(address, self.allow_private || self.plan.host_is_literal) =>
            {
                Err(Outcome::retry(Refused { host: bare.to_owned(), address }.to_string()))
            }
            _ => Ok(()),
        }
    }
}

struct Prepared {
    request: Request<Full<Bytes>>,
    account: String,
    target: Target,
    /// As written, and as it is sent: some servers echo the header.
    password: Option<[String; 2]>,
}

fn clean(redactor: &Redactor, outcome: Outcome) -> Outcome {
    let text = |reason: String| {
        let mut reason = redactor.clean(&reason);
        shorten(&mut reason, REASON_MAX_BYTES);
        reason
    };
    match outcome {
        Outcome::Delivered => Outcome::Delivered,
        Outcome::Retry { reason, after_ms } => Outcome::Retry { reason: text(reason), after_ms },
        Outcome::Reject { reason } => Outcome::Reject { reason: text(reason) },
        Outcome::Uncounted { reason } => Outcome::Uncounted { reason: text(reason) },
    }
}

/// Line breaks and other control characters, which no header can carry, become spaces.
fn header_value(text: &str) -> Option<HeaderValue> {
    let text = text.replace(|c: char| c.is_ascii_control(), " ");
    HeaderValue::from_bytes(text.trim().as_bytes()).ok()
}

/// Methods that carry no body unless one is configured.
fn is_bodiless(method: &Method) -> bool {
    *method == Method::GET || *method == Method::HEAD
}

#[cfg(test)]
mod tests;
