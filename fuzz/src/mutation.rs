//! Mutations of seeds, the same in every run: a fuzzer without feedback, for tests.

/// xorshift64*.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of a seed other than 0.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed.max(1))
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`; 0 when that is 0.
    pub fn below(&mut self, end: usize) -> usize {
        let number = usize::try_from(self.number() >> 33).unwrap_or(0);
        number.checked_rem(end).unwrap_or(0)
    }

    fn byte(&mut self) -> u8 {
        self.number().to_be_bytes()[0]
    }
}

/// Bytes that often matter: zero, ones, the sign, the first and last numbers, letters of TOML.
const INTERESTING: &[u8] = &[
    0, 1, 2, 7, 8, 0x0f, 0x10, 0x20, 0x7f, 0x80, 0xff, b'"', b'[', b']', b'=', b'\n', b'#', b'.',
    b'-', b'0', b'9', b'a', b'x',
];

/// `seed` with one to eight changes: bits, bytes, numbers, and pieces copied, moved in from `other`, or taken out.
#[must_use]
pub fn mutated(random: &mut Random, seed: &[u8], other: &[u8]) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=random.below(8) {
        change(random, &mut bytes, other);
    }
    bytes
}

fn change(random: &mut Random, bytes: &mut Vec<u8>, other: &[u8]) {
    let at = random.below(bytes.len());
    let interesting = INTERESTING[random.below(INTERESTING.len())];
    match random.below(9) {
        0 => crate::put(bytes, at, &[random.byte()]),
        1 => crate::put(bytes, at, &[interesting]),
        2 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << random.below(8);
            }
        }
        3 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = byte.wrapping_add(random.byte() % 5).wrapping_sub(2);
            }
        }
        4 => {
            let width = 1 << random.below(4);
            let number = random.number() >> random.below(64);
            crate::put(bytes, at, &number.to_le_bytes()[..width]);
        }
        5 => bytes.insert(at, interesting),
        6 => {
            let end = at + random.below(bytes.len() - at + 1).min(64);
            bytes.drain(at..end);
        }
        7 => {
            let from = random.below(other.len());
            let end = from + random.below(other.len() - from + 1).min(256);
            bytes.splice(at..at, other[from..end].iter().copied());
        }
        _ => {
            let from = random.below(bytes.len());
            let end = from + random.below(bytes.len() - from + 1).min(64);
            let piece = bytes[from..end].to_vec();
            crate::put(bytes, at, &piece);
        }
    }
}
