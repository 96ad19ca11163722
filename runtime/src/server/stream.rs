//! The bytes of one connection: which protocol they begin, whether a request is arriving, and an end without a reset.

use super::connection::Activity;
use super::tls::Wire;
use bytes::BytesMut;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// What every client of HTTP/2 sends first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How long a client may take to close a connection that we have closed.
const FAREWELL: Duration = Duration::from_secs(1);

/// A connection that was accepted.
pub(super) struct Stream {
    wire: Wire,
    /// What was read to learn the protocol, and is still to be handed out.
    head: BytesMut,
    activity: Activity,
    farewell: Option<Pin<Box<Sleep>>>,
}

impl Stream {
    pub(super) fn new(wire: Wire, activity: Activity) -> Self {
        Self {
            wire,
            head: BytesMut::new(),
            activity,
            farewell: None,
        }
    }

    /// Reads until it is known whether the client speaks HTTP/2.
    pub(super) async fn begins_http2(&mut self) -> io::Result<bool> {
        loop {
            let known = self.head.len().min(PREFACE.len());
            if self.head[..known] != PREFACE[..known] {
                return Ok(false);
            }
            if known == PREFACE.len() {
                return Ok(true);
            }
            if self.wire.read_buf(&mut self.head).await? == 0 {
                return Ok(false);
            }
            self.activity.arrives();
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.head.is_empty() {
            let length = self.head.len().min(buffer.remaining());
            buffer.put_slice(&self.head.split_to(length));
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.wire).poll_read(context, buffer))?;
        if buffer.filled().len() > before {
            self.activity.arrives();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.wire).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.wire).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.wire.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_flush(context)
    }

    /// Says that nothing more will be sent, and then waits for the client to say the same: closing while the client
    /// still sends is a reset, and a reset takes away what the client has not read yet.
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let me = &mut *self;
        if me.farewell.is_none() {
            ready!(Pin::new(&mut me.wire).poll_shutdown(context))?;
        }
        let farewell = me.farewell.get_or_insert_with(|| Box::pin(sleep(FAREWELL)));
        let mut discarded = [0; 4096];
        while farewell.as_mut().poll(context).is_pending() {
            let mut buffer = ReadBuf::new(&mut discarded);
            let read = ready!(Pin::new(&mut me.wire).poll_read(context, &mut buffer));
            if read.is_err() || buffer.filled().is_empty() {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }
}
