//! The checksum of images and configurations: CRC-32 as in IEEE 802.3 (reflected, polynomial 0xedb88320).
//!
//! It guards against truncated and damaged files, not against forged ones.

/// CRC-32 of `bytes`, in which the four bytes at `hole` (where the checksum itself lives) count as zero.
#[must_use]
pub fn crc32_with_hole(bytes: &[u8], hole: usize) -> u32 {
    let mut crc = u32::MAX;
    for (index, byte) in bytes.iter().enumerate() {
        let value = if index.wrapping_sub(hole) < 4 {
            0
        } else {
            *byte
        };
        crc ^= u32::from(value);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & 0u32.wrapping_sub(crc & 1));
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::crc32_with_hole;

    #[test]
    fn agrees_with_the_published_check_value() {
        assert_eq!(crc32_with_hole(b"123456789", 100), 0xcbf4_3926);
    }

    #[test]
    fn the_hole_does_not_count() {
        assert_eq!(
            crc32_with_hole(b"abcdWXYZefgh", 4),
            crc32_with_hole(b"abcd\0\0\0\0efgh", 4)
        );
        assert_ne!(
            crc32_with_hole(b"abcdWXYZefgi", 4),
            crc32_with_hole(b"abcdWXYZefgh", 4)
        );
    }
}
