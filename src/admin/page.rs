//! The debugger page: files within the binary, nothing from elsewhere.

use hyper::{Method, StatusCode};

use super::body::{Answer, full};

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";

/// Path, content type, content.
const FILES: &[(&str, &str, &str)] = &[
    ("/", HTML, include_str!("page/index.html")),
    ("/assets/style.css", CSS, include_str!("page/style.css")),
    ("/assets/api.js", JS, include_str!("page/api.js")),
    ("/assets/app.js", JS, include_str!("page/app.js")),
    ("/assets/charts.js", JS, include_str!("page/charts.js")),
    ("/assets/dead.js", JS, include_str!("page/dead.js")),
    ("/assets/deliveries.js", JS, include_str!("page/deliveries.js")),
    ("/assets/detail.js", JS, include_str!("page/detail.js")),
    ("/assets/dialog.js", JS, include_str!("page/dialog.js")),
    ("/assets/dom.js", JS, include_str!("page/dom.js")),
    ("/assets/filters.js", JS, include_str!("page/filters.js")),
    ("/assets/format.js", JS, include_str!("page/format.js")),
    ("/assets/handlers.js", JS, include_str!("page/handlers.js")),
    ("/assets/headers.js", JS, include_str!("page/headers.js")),
    ("/assets/keys.js", JS, include_str!("page/keys.js")),
    ("/assets/list.js", JS, include_str!("page/list.js")),
    ("/assets/live.js", JS, include_str!("page/live.js")),
    ("/assets/messages.js", JS, include_str!("page/messages.js")),
    ("/assets/payload.js", JS, include_str!("page/payload.js")),
    ("/assets/refused.js", JS, include_str!("page/refused.js")),
    ("/assets/route.js", JS, include_str!("page/route.js")),
    ("/assets/row.js", JS, include_str!("page/row.js")),
    ("/assets/state.js", JS, include_str!("page/state.js")),
    ("/assets/status.js", JS, include_str!("page/status.js")),
    ("/assets/text.js", JS, include_str!("page/text.js")),
    ("/assets/trigger.js", JS, include_str!("page/trigger.js")),
];

/// `None`: the path is none of the page's.
#[must_use]
pub fn answer(method: &Method, path: &str) -> Option<Answer> {
    let (_, content_type, content) = FILES.iter().find(|(name, ..)| *name == path)?;
    Some(match *method {
        Method::GET | Method::HEAD => full(StatusCode::OK, content_type, *content),
        _ => {
            let mut answer =
                full(StatusCode::METHOD_NOT_ALLOWED, "text/plain; charset=utf-8", "use GET\n");
            let allow = hyper::header::HeaderValue::from_static("GET, HEAD");
            answer.headers_mut().insert(hyper::header::ALLOW, allow);
            answer
        }
    })
}

/// What a browser shows to whoever is not signed in.
#[must_use]
pub fn signed_out(why: &str) -> String {
    let why = why.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>bluehook: sign in</title>\n\
         <main>\n<h1>bluehook</h1>\n<p>{why}</p>\n<pre>bluehook debugger</pre>\n</main>\n</html>\n"
    )
}
