//! A body that holds something while it exists.

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// The body of an answer with a guard, which learns whether all of it was handed over.
pub(super) struct Guarded<G: Guard> {
    inner: Body,
    guard: G,
}

/// What ends with an answer.
pub(super) trait Guard: Unpin {
    /// The whole body was handed over.
    fn complete(&mut self) {}
}

impl<G: Guard> Guarded<G> {
    pub(super) fn new(inner: Body, mut guard: G) -> Self {
        if inner.is_end_stream() {
            guard.complete();
        }
        Self { inner, guard }
    }
}

impl<G: Guard> HttpBody for Guarded<G> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
        // A body of known length is not asked for its end.
        if frame.is_none() || self.inner.is_end_stream() {
            self.guard.complete();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
