//! The same API on loopback TCP, and the debugger page with it, behind the [`Guard`].

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;

use super::guard::Guard;
use super::serve::{self, Respond};

/// # Errors
/// One line: what, why, what to do next.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(address).await.map_err(|e| {
        format!(
            "cannot listen on {address} for the debugger page: {e}; set admin.listen to another address, or \
             to \"\" to do without"
        )
    })
}

/// Serves until `stop` is ready. `api` answers what the guard lets through.
pub async fn serve(
    listener: TcpListener,
    guard: Guard,
    api: Respond,
    stop: impl Future<Output = ()>,
) {
    let guard = Arc::new(guard);
    let respond: Respond = Arc::new(move |request| {
        let (guard, api) = (Arc::clone(&guard), Arc::clone(&api));
        Box::pin(async move { guard.answer(request, &api).await })
    });
    serve::serve("admin.listen", listener, respond, stop).await;
}
