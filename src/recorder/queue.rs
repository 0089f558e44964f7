//! What waits to be written: frames as they came, in chunks that go back and forth between those who record and the writer.

use std::mem;
use std::time::Instant;

use super::{Direction, FrameKind};

/// What one recorder's connections have told of and its writer has not taken, with what both must agree on.
pub(super) struct Queue {
    /// In order; the last is being filled.
    chunks: Vec<Chunk>,
    /// Written and emptied, their pages warm.
    spare: Vec<Chunk>,
    /// What waits, be it in here or taken and not written.
    bytes: usize,
    /// What may wait.
    pub(super) bytes_max: usize,
    /// Entries dropped since the last that was kept, and when the first of them was.
    missing: Option<(Instant, u64)>,
    /// Entries dropped ever.
    dropped: u64,
}

/// A run of entries.
pub(super) struct Chunk {
    heads: Vec<Head>,
    payloads: Vec<u8>,
}

/// What is known of an entry beside its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) at: Instant,
    pub(super) connection: u64,
    pub(super) generation: u32,
    pub(super) direction: Direction,
    pub(super) what: What,
    pub(super) is_secret: bool,
    /// Bytes of its payload.
    size: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Frame(FrameKind),
    /// The payload is a JSON object.
    State,
    /// So many entries, of whichever connection.
    Missing(u64),
}

impl Queue {
    pub(super) fn new(bytes_max: usize) -> Self {
        // One to fill while the other is written.
        let spare = vec![Chunk::new_warm(), Chunk::new_warm()];
        Self { chunks: Vec::new(), spare, bytes: 0, bytes_max, missing: None, dropped: 0 }
    }

    /// Keeps an entry, or counts it as dropped if there is no room. Returns whether the queue has become half full by it.
    pub(super) fn push(&mut self, head: Head, payload: &[u8]) -> bool {
        if self.refuses(&head, payload.len()) {
            return false;
        }
        self.close_gap();
        self.chunk_for(payload.len()).push(head, payload);
        self.count(cost(payload.len()))
    }

    /// Whether there is no room for an entry, which counts as dropped then.
    pub(super) fn refuses(&mut self, head: &Head, payload: usize) -> bool {
        let is_refused = !self.has_room(cost(payload));
        if is_refused {
            self.drop_one(head.at);
        }
        is_refused
    }

    /// Keeps a chunk that was filled outside, as [`push`](Self::push), or gives it back, to be freed outside.
    pub(super) fn push_chunk(&mut self, chunk: Chunk) -> Result<bool, Chunk> {
        let cost = chunk.cost();
        if !self.has_room(cost) {
            for head in &chunk.heads {
                self.drop_one(head.at);
            }
            return Err(chunk);
        }
        self.close_gap();
        self.chunks.push(chunk);
        Ok(self.count(cost))
    }

    /// Moves all chunks to the writer, which gives its empty list for them; they count as waiting until each is given back.
    pub(super) fn take(&mut self, chunks: &mut Vec<Chunk>) {
        assert!(chunks.is_empty(), "the chunks taken before are written or given up");
        self.close_gap();
        mem::swap(&mut self.chunks, chunks);
    }

    /// Takes a chunk back that was written. Returns one of which there is no use, to be freed outside.
    #[must_use]
    pub(super) fn give_back(&mut self, mut chunk: Chunk) -> Option<Chunk> {
        self.bytes -= chunk.cost();
        if !chunk.is_regular() || self.spare.len() >= SPARE_MAX {
            return Some(chunk);
        }
        chunk.heads.clear();
        chunk.payloads.clear();
        self.spare.push(chunk);
        None
    }

    /// Takes a chunk back that cannot be written; else as [`give_back`](Self::give_back).
    #[must_use]
    pub(super) fn give_up(&mut self, chunk: Chunk) -> Option<Chunk> {
        self.dropped += chunk.heads.iter().filter(|head| !matches!(head.what, What::Missing(_))).count() as u64;
        self.give_back(chunk)
    }

    pub(super) fn is_half_full(&self) -> bool {
        self.bytes >= self.bytes_max / 2
    }

    /// Bytes that wait, be it in here or taken and not written.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether anything waits or is to be told of.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes == 0 && self.missing.is_none()
    }

    /// Entries that were dropped ever.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    fn has_room(&self, cost: usize) -> bool {
        self.bytes.saturating_add(cost) <= self.bytes_max
    }

    fn count(&mut self, cost: usize) -> bool {
        let was_half_full = self.is_half_full();
        self.bytes += cost;
        !was_half_full && self.is_half_full()
    }

    fn drop_one(&mut self, at: Instant) {
        self.missing.get_or_insert((at, 0)).1 += 1;
        self.dropped += 1;
    }

    /// Tells what was dropped in the place where it would stand.
    fn close_gap(&mut self) {
        if let Some((at, count)) = self.missing.take() {
            self.chunk_for(0).push(Head::missing(at, count), &[]);
            self.bytes += cost(0);
        }
    }

    fn chunk_for(&mut self, payload: usize) -> &mut Chunk {
        if !self.chunks.last().is_some_and(|chunk| chunk.has_room(payload)) {
            self.chunks.push(self.spare.pop().unwrap_or_else(Chunk::new));
        }
        self.chunks.last_mut().expect("one was pushed if there was none")
    }
}

impl Chunk {
    /// How large a payload may be that shares a chunk.
    pub(super) const PAYLOADS: usize = 64 << 10;

    const HEADS: usize = 1024;

    /// One that can be used again and again.
    fn new() -> Self {
        Self { heads: Vec::with_capacity(Self::HEADS), payloads: Vec::with_capacity(Self::PAYLOADS) }
    }

    /// One whose pages the kernel has found already.
    fn new_warm() -> Self {
        let mut chunk = Self::new();
        chunk.payloads.resize(Self::PAYLOADS, 1);
        chunk.payloads.clear();
        chunk
    }

    /// A chunk for one entry whose payload is too large to share one.
    pub(super) fn of_one(head: Head, payload: &[u8]) -> Self {
        Self { heads: vec![Head { size: payload.len(), ..head }], payloads: payload.to_vec() }
    }

    /// The entries in order.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&Head, &[u8])> {
        let mut rest = self.payloads.as_slice();
        self.heads.iter().map(move |head| {
            let (payload, after) = rest.split_at(head.size);
            rest = after;
            (head, payload)
        })
    }

    pub(super) fn len(&self) -> usize {
        self.heads.len()
    }

    fn push(&mut self, head: Head, payload: &[u8]) {
        self.heads.push(Head { size: payload.len(), ..head });
        self.payloads.extend_from_slice(payload);
    }

    fn has_room(&self, payload: usize) -> bool {
        self.heads.len() < Self::HEADS && self.payloads.len() + payload <= Self::PAYLOADS
    }

    fn is_regular(&self) -> bool {
        self.heads.capacity() >= Self::HEADS
    }

    /// What it takes of the bound.
    fn cost(&self) -> usize {
        self.heads.len() * cost(0) + self.payloads.len()
    }
}

impl Head {
    pub(super) fn new(at: Instant, connection: u64, generation: u32, direction: Direction, what: What, is_secret: bool) -> Self {
        Self { at, connection, generation, direction, what, is_secret, size: 0 }
    }

    fn missing(at: Instant, count: u64) -> Self {
        Self::new(at, 0, 0, Direction::In, What::Missing(count), false)
    }
}

/// What an entry takes of the bound.
fn cost(payload: usize) -> usize {
    size_of::<Head>() + payload
}

/// How many chunks are kept for the next burst, 4 MiB at most.
const SPARE_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    fn head(connection: u64) -> Head {
        Head::new(Instant::now(), connection, 1, Direction::In, What::Frame(FrameKind::Text), false)
    }

    fn take(queue: &mut Queue) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        queue.take(&mut chunks);
        chunks
    }

    fn told(chunks: &[Chunk]) -> Vec<(What, Vec<u8>)> {
        chunks.iter().flat_map(|chunk| chunk.entries().map(|(head, payload)| (head.what, payload.to_vec()))).collect()
    }

    #[test]
    fn entries_come_out_as_they_went_in() {
        let mut queue = Queue::new(1 << 20);
        let large = vec![7; Chunk::PAYLOADS + 1];
        queue.push(head(1), b"one");
        assert!(queue.push_chunk(Chunk::of_one(head(1), &large)).is_ok());
        queue.push(head(1), b"");
        queue.push(head(1), b"three");
        let text = What::Frame(FrameKind::Text);
        let expected = [(text, b"one".to_vec()), (text, large), (text, vec![]), (text, b"three".to_vec())];
        assert_eq!(told(&take(&mut queue)), expected);
        assert_eq!(told(&take(&mut queue)), []);
    }

    #[test]
    fn what_is_dropped_is_told_of_in_its_place() {
        let mut queue = Queue::new(2 * cost(1));
        for payload in [b"1", b"2", b"3", b"4"] {
            queue.push(head(1), payload);
        }
        let text = What::Frame(FrameKind::Text);
        let mut taken = take(&mut queue);
        assert_eq!(told(&taken), [(text, b"1".to_vec()), (text, b"2".to_vec()), (What::Missing(2), vec![])]);
        queue.push(head(1), b"5");
        assert_eq!(queue.dropped(), 3, "what was taken and is not written counts");
        assert!(queue.give_back(taken.pop().unwrap()).is_none());
        queue.push(head(1), b"6");
        assert_eq!(told(&take(&mut queue)), [(What::Missing(1), vec![]), (text, b"6".to_vec())]);
    }

    #[test]
    fn a_large_entry_without_room_is_refused_before_it_is_copied_and_after() {
        let mut queue = Queue::new(cost(1));
        assert!(!queue.refuses(&head(1), 1));
        assert!(queue.refuses(&head(1), 2));
        assert_eq!(queue.push_chunk(Chunk::of_one(head(1), b"xx")).err().map(|chunk| chunk.len()), Some(1));
        assert_eq!(told(&take(&mut queue)), [(What::Missing(2), vec![])]);
    }

    #[test]
    fn becoming_half_full_is_said_once() {
        let mut queue = Queue::new(4 * cost(1));
        assert_eq!([0; 5].map(|_| queue.push(head(1), b"x")), [false, true, false, false, false]);
    }

    #[test]
    fn chunks_are_used_again() {
        let mut queue = Queue::new(1 << 20);
        queue.push(head(1), b"x");
        let first = take(&mut queue).pop().unwrap();
        let address = first.payloads.as_ptr();
        assert!(queue.give_back(first).is_none());
        queue.push(head(1), b"x");
        assert_eq!(take(&mut queue)[0].payloads.as_ptr(), address);
        assert!(!queue.is_empty(), "it is not given back");
    }

    #[test]
    fn spare_chunks_are_few() {
        let mut queue = Queue::new(64 << 20);
        let payload = vec![0; Chunk::PAYLOADS];
        for _ in 0..2 * SPARE_MAX {
            queue.push(head(1), &payload);
        }
        let freed = take(&mut queue).into_iter().filter_map(|chunk| queue.give_back(chunk)).count();
        assert_eq!(freed, SPARE_MAX);
        assert_eq!(queue.spare.len(), SPARE_MAX);
        assert!(queue.is_empty());
    }
}
