//! A pod's server: says who it is, over HTTP and UDP, on every address it is given.
//!
//! `/` the answer; `/bytes?count=N` a body of N bytes; `/slow?chunks=N&interval_ms=M` a body that takes its time.

use std::{convert::Infallible, io::Read as _, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use axum::{
    Json, Router,
    body::Body,
    extract::{ConnectInfo, Query, State, connect_info::Connected},
    routing::get,
    serve::IncomingStream,
};
use futures::stream;
use lb_tests::probe::{Answer, DATAGRAM_MAX};
use serde::Deserialize;
use tokio::{
    net::{TcpListener, UdpSocket},
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
};

/// Both ends of a connection.
#[derive(Clone, Copy)]
struct Ends {
    client: SocketAddr,
    server: SocketAddr,
}

impl Connected<IncomingStream<'_, TcpListener>> for Ends {
    fn connect_info(stream: IncomingStream<'_, TcpListener>) -> Self {
        // A connection reset before it was accepted has no local address any more; nobody will read its answer.
        let server = stream.io().local_addr().unwrap_or(*stream.remote_addr());
        Self { client: *stream.remote_addr(), server }
    }
}

/// Serves until stdin closes (the parent died) or SIGTERM comes; then finishes what it has begun.
pub fn serve(name: &str, http: &[SocketAddr], udp: &[SocketAddr]) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut servers = JoinSet::new();
        let (stop, stopped) = watch::channel(false);
        for address in http {
            let listener =
                TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
            servers.spawn(serve_http(name.to_owned(), listener, stopped.clone()));
        }
        for address in udp {
            let socket = UdpSocket::bind(address).await.with_context(|| format!("bind {address}"))?;
            servers.spawn(serve_udp(name.to_owned(), socket, stopped.clone()));
        }
        println!("ready");
        wait_for_the_end().await?;
        stop.send_replace(true);
        while let Some(ended) = servers.join_next().await {
            ended??;
        }
        Ok(())
    })
}

async fn wait_for_the_end() -> Result<()> {
    let (closed_sender, mut closed) = watch::channel(false);
    // A thread, because tokio's stdin would keep the runtime from ending.
    std::thread::spawn(move || {
        let mut rest = Vec::new();
        drop(std::io::stdin().read_to_end(&mut rest));
        closed_sender.send_replace(true);
    });
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = closed.changed() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

async fn serve_http(name: String, listener: TcpListener, mut stopped: watch::Receiver<bool>) -> Result<()> {
    let router = Router::new()
        .route("/", get(answer))
        .route("/bytes", get(bytes))
        .route("/slow", get(slow))
        .with_state(name)
        .into_make_service_with_connect_info::<Ends>();
    let end = async move { drop(stopped.changed().await) };
    axum::serve(listener, router).with_graceful_shutdown(end).await.context("serve HTTP")
}

async fn answer(State(pod): State<String>, ConnectInfo(ends): ConnectInfo<Ends>) -> Json<Answer> {
    Json(Answer { pod, client: ends.client, server: ends.server })
}

#[derive(Deserialize)]
struct Size {
    count: usize,
}

async fn bytes(Query(size): Query<Size>) -> Vec<u8> {
    vec![b'x'; size.count]
}

#[derive(Deserialize)]
struct Pace {
    chunks: u64,
    interval_ms: u64,
}

async fn slow(Query(pace): Query<Pace>) -> Body {
    Body::from_stream(stream::unfold(0, move |sent| async move {
        if sent == pace.chunks {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(pace.interval_ms)).await;
        Some((Ok::<_, Infallible>(format!("chunk {sent}\n")), sent + 1))
    }))
}

async fn serve_udp(name: String, socket: UdpSocket, mut stopped: watch::Receiver<bool>) -> Result<()> {
    let server = socket.local_addr()?;
    let mut buffer = [0; DATAGRAM_MAX];
    loop {
        let received = tokio::select! {
            received = socket.recv_from(&mut buffer) => received,
            _ = stopped.changed() => return Ok(()),
        };
        // An error is the ICMP answer to a reply whose client has gone.
        if let Ok((len, client)) = received {
            let mut answer = serde_json::to_vec(&Answer { pod: name.clone(), client, server })?;
            // White space ends JSON as well as nothing does.
            answer.resize(answer.len().max(len), b' ');
            drop(socket.send_to(&answer, client).await);
        }
    }
}
