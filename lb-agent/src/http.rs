//! An HTTP/1.1 server on a TCP port that anybody on the network may reach: health checks and metrics.
//!
//! What must stay true: a client costs a bounded amount. A listener serves `CONNECTIONS_MAX` at a time, and one that
//! does not finish its request headers within `HEADERS_TIMEOUT` is cut off. That, and that a port is free the moment
//! [`serve`] returns, is why this is hyper's connection in a loop of ours: `axum::serve` knows neither.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

/// Clients of one listener at a time; further ones wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 256;
/// From the connection, or the last answer, to the end of the next request's headers.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(30);
/// After a failure to accept, which is a lack of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections the kernel keeps until they are accepted.
const BACKLOG: i32 = 128;

/// Listens. `[::]` is IPv6 only: IPv4 has a listener of its own.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Serves `routes` until `stop`. When it returns the port is free; answers on their way are finished by tasks of their
/// own, and connections are closed after them.
pub async fn serve(listener: TcpListener, routes: Router, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let accept = async {
        // The semaphore is never closed.
        while let Ok(place) = places.clone().acquire_owned().await {
            match listener.accept().await {
                Ok((stream, _)) => {
                    tokio::spawn(converse(stream, routes.clone(), stop.clone(), place));
                }
                Err(error) => {
                    tracing::debug!("accept: {error}");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    stop.run_until_cancelled(accept).await;
}

/// One connection. What goes wrong on it is the client's affair.
async fn converse(stream: TcpStream, routes: Router, stop: CancellationToken, _place: OwnedSemaphorePermit) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_TIMEOUT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        () = stop.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    // Closed in any case: a client that does not read must not hold the connection for ever.
    let _ = tokio::time::timeout(HEADERS_TIMEOUT, connection).await;
}
