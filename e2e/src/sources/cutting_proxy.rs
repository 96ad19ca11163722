//! Stands before a source and breaks long answers off.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use anyhow::{Context as _, Result};

/// A running proxy; its threads end with the process.
#[derive(Debug)]
pub struct CuttingProxy {
    address: SocketAddr,
    counts: Arc<Counts>,
}

#[derive(Debug)]
struct Counts {
    cuts_left: AtomicUsize,
    bytes: AtomicU64,
}

impl CuttingProxy {
    /// Leads to `target`, and closes a connection after `limit` bytes of answers, this many times.
    pub fn start(target: SocketAddr, limit: u64, cuts: usize) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("could not find a free port")?;
        let address = listener.local_addr()?;
        let counts = Arc::new(Counts {
            cuts_left: AtomicUsize::new(cuts),
            bytes: AtomicU64::new(0),
        });
        let shared = Arc::clone(&counts);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let counts = Arc::clone(&shared);
                std::thread::spawn(move || lead(&client, target, limit, &counts));
            }
        });
        Ok(Self { address, counts })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many cuts are still to come.
    pub fn cuts_left(&self) -> usize {
        self.counts.cuts_left.load(Ordering::SeqCst)
    }

    /// Bytes of answers that went through.
    pub fn bytes(&self) -> u64 {
        self.counts.bytes.load(Ordering::SeqCst)
    }
}

fn lead(client: &TcpStream, target: SocketAddr, limit: u64, counts: &Counts) -> io::Result<()> {
    let server = TcpStream::connect(target)?;
    let (mut asking, mut asked) = (client.try_clone()?, server.try_clone()?);
    std::thread::spawn(move || {
        let _ = io::copy(&mut asking, &mut asked);
        asked.shutdown(Shutdown::Write)
    });
    let led = answer(&server, client, limit, counts);
    let _ = client.shutdown(Shutdown::Both);
    let _ = server.shutdown(Shutdown::Both);
    led
}

fn answer(mut server: &TcpStream, mut client: &TcpStream, limit: u64, counts: &Counts) -> io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    let mut sent = 0;
    loop {
        let read = server.read(&mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        client.write_all(&buffer[..read])?;
        sent += read as u64;
        counts.bytes.fetch_add(read as u64, Ordering::SeqCst);
        let left = |left: usize| left.checked_sub(1);
        let is_cut = sent > limit
            && counts
                .cuts_left
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, left)
                .is_ok();
        if is_cut {
            return Ok(());
        }
    }
}
