//! A cursor over bytes whose every step is checked against what is left.

/// What the bytes were short of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Short {
    /// Bytes that a field needs.
    pub(crate) wanted: u64,
    /// Bytes that are left.
    pub(crate) left: u64,
    /// Where the field starts.
    pub(crate) at: u64,
}

/// Reads little-endian values from the front of a slice, or of a file of which only the front is at hand.
#[derive(Debug, Clone)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
    length: usize,
    lacks_bytes: bool,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self::of_front(bytes, bytes.len())
    }

    /// Reads a file of `length` bytes that starts with `bytes`.
    pub(crate) fn of_front(bytes: &'a [u8], length: usize) -> Self {
        Self {
            bytes,
            position: 0,
            length: length.max(bytes.len()),
            lacks_bytes: false,
        }
    }

    /// Whether a step failed only because more of the file was needed than was at hand.
    pub(crate) fn lacks_bytes(&self) -> bool {
        self.lacks_bytes
    }

    pub(crate) fn position(&self) -> usize {
        self.position
    }

    /// Bytes of the file behind the position.
    pub(crate) fn left(&self) -> u64 {
        (self.length - self.position) as u64
    }

    /// The next `length` bytes.
    pub(crate) fn take(&mut self, length: u64) -> Result<&'a [u8], Short> {
        let short = Short {
            wanted: length,
            left: self.left(),
            at: self.position as u64,
        };
        if length > short.left {
            return Err(short);
        }
        let length = usize::try_from(length).map_err(|_| short)?;
        let Some(taken) = self.bytes.get(self.position..self.position + length) else {
            self.lacks_bytes = true;
            return Err(short);
        };
        self.position += length;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Short> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64)?);
        Ok(array)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Short> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Short> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Short> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Short> {
        Ok(u64::from_le_bytes(self.array()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn front_is_told_from_the_end() {
        let mut reader = Reader::of_front(&[1, 0, 2], 6);
        assert_eq!((reader.u16(), reader.left()), (Ok(1), 4));
        assert!(reader.u64().is_err() && !reader.lacks_bytes());
        assert!(reader.u32().is_err() && reader.lacks_bytes());
    }

    #[test]
    fn reads_stop_at_the_end() {
        let mut reader = Reader::new(&[1, 0, 2, 0, 0, 0, 9]);
        assert_eq!(reader.u16(), Ok(1));
        assert_eq!(reader.u32(), Ok(2));
        let short = Short {
            wanted: 8,
            left: 1,
            at: 6,
        };
        assert_eq!(reader.u64(), Err(short));
        assert!(reader.take(u64::MAX).is_err());
        assert_eq!(reader.u8(), Ok(9));
        assert_eq!(reader.left(), 0);
    }
}
