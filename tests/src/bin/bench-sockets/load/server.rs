//! The server's sockets: a thread per address and measure.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    thread,
};

use anyhow::{Context as _, Result};

use super::Measure;

/// Serves every measure on these addresses until stdin closes. Prints `ready` once all are bound.
pub(crate) fn run(addresses: &[Ipv4Addr]) -> Result<()> {
    for &address in addresses {
        listen(address, Measure::TcpConnect, answer)?;
        listen(address, Measure::Bulk, swallow)?;
        let socket = UdpSocket::bind((address, Measure::UdpFlow.port())).context("bind")?;
        thread::spawn(move || echo(&socket));
    }
    println!("ready");
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(())
}

/// One connection after the other. What breaks is the client's to report.
fn listen(address: Ipv4Addr, measure: Measure, serve: fn(TcpStream) -> io::Result<()>) -> Result<()> {
    let listener = TcpListener::bind((address, measure.port())).context("listen")?;
    thread::spawn(move || listener.incoming().flatten().for_each(|stream| drop(serve(stream))));
    Ok(())
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    let mut request = [0; 64];
    stream.read_exact(&mut request)?;
    stream.write_all(&request)
}

fn swallow(mut stream: TcpStream) -> io::Result<()> {
    let (mut buffer, mut received) = (vec![0; 256 * 1024], 0_u64);
    loop {
        match stream.read(&mut buffer)? {
            0 => return stream.write_all(&received.to_be_bytes()),
            length => received += length as u64,
        }
    }
}

fn echo(socket: &UdpSocket) {
    let mut buffer = [0; 2048];
    loop {
        // An error is the ICMP answer to a datagram whose sender has gone.
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            drop(socket.send_to(&buffer[..length], from));
        }
    }
}
