//! A stream of output that ends with a token, because a virtio port has no end of its own.

use std::io::{self, Read, Write};

/// How a stream ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The token came: the output is whole.
    Whole,
    /// The other end went away first.
    Cut,
}

/// Copies up to the token, which is not copied. Nothing is held back but what may be the start of the token.
pub(crate) fn copy(from: &mut impl Read, to: &mut impl Write, token: &[u8]) -> io::Result<Ended> {
    let mut buffer = vec![0_u8; 64 * 1024];
    let mut held: Vec<u8> = Vec::new();
    loop {
        let count = match from.read(&mut buffer) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => 0,
            Err(error) => return Err(error),
        };
        if count == 0 {
            to.write_all(&held)?;
            to.flush()?;
            return Ok(Ended::Cut);
        }
        held.extend_from_slice(buffer.get(..count).unwrap_or_default());
        if let Some(at) = held.windows(token.len()).position(|window| window == token) {
            to.write_all(held.get(..at).unwrap_or_default())?;
            to.flush()?;
            return Ok(Ended::Whole);
        }
        let keep = (0..token.len().min(held.len() + 1))
            .rev()
            .find(|length| held.ends_with(token.get(..*length).unwrap_or_default()))
            .unwrap_or(0);
        let pass = held.len() - keep;
        to.write_all(held.get(..pass).unwrap_or_default())?;
        to.flush()?;
        held.drain(..pass);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives the pieces one by one.
    struct Pieces(Vec<&'static [u8]>);

    impl Read for Pieces {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                return Ok(0);
            }
            let piece = self.0.remove(0);
            buffer[..piece.len()].copy_from_slice(piece);
            Ok(piece.len())
        }
    }

    fn copied(pieces: &[&'static [u8]]) -> (Vec<u8>, Ended) {
        let mut out = Vec::new();
        let ended = copy(&mut Pieces(pieces.to_vec()), &mut out, b"TOKEN").unwrap();
        (out, ended)
    }

    #[test]
    fn the_token_ends_the_stream_however_it_is_cut() {
        for pieces in [
            &[b"abcTOKEN".as_slice()] as &[&[u8]],
            &[b"abcTO", b"KEN"],
            &[b"a", b"b", b"c", b"T", b"O", b"K", b"E", b"N", b"after"],
            &[b"abc", b"TOKENafter"],
        ] {
            assert_eq!(copied(pieces), (b"abc".to_vec(), Ended::Whole), "{pieces:?}");
        }
    }

    #[test]
    fn what_only_looks_like_the_token_passes() {
        assert_eq!(copied(&[b"TOTOKENx"]), (b"TO".to_vec(), Ended::Whole));
        assert_eq!(copied(&[b"TOK", b"TOK", b"EXTOKE"]), (b"TOKTOKEXTOKE".to_vec(), Ended::Cut));
        assert_eq!(copied(&[b"\xff\0\r\n"]), (b"\xff\0\r\n".to_vec(), Ended::Cut));
    }
}
