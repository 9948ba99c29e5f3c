//! From the linker's ELF files to flat images: what is loaded, laid out as in memory.
//!
//! What is zero at the end of memory is not stored; whoever loads the image clears it.

use anyhow::{Context, Result, ensure};
use gaol_abi::checksum::crc32_with_hole;
use gaol_abi::image::{CHECKSUM_OFFSET, ImageHeader, LINK_BASE, SIGNATURE};
use object::LittleEndian;
use object::elf::{FileHeader64, PT_LOAD, ProgramHeader64};
use object::read::elf::{FileHeader, ProgramHeader};
use zerocopy::FromBytes;

/// The largest flat image that makes sense; a larger one means that a segment lies elsewhere than meant.
const LARGEST: u64 = 16 << 20;

type Segment = ProgramHeader64<LittleEndian>;

/// The hypervisor's image: from its link address on, with its checksum filled in.
///
/// # Errors
/// When the file is no ELF file, or its header does not describe it.
pub fn hypervisor(elf: &[u8]) -> Result<Vec<u8>> {
    let mut image = flatten(elf, LINK_BASE, |segment| segment.p_vaddr(LittleEndian))?;
    let (header, _) = ImageHeader::read_from_prefix(&image)
        .ok()
        .context("the image is shorter than its header")?;
    ensure!(
        header.signature == SIGNATURE,
        "the image does not start with its header: look at the linker script"
    );
    let size = usize::try_from(header.file_size)?;
    ensure!(
        image.len() <= size && header.file_size <= header.memory_size,
        "the image has {} bytes, but its header says {size}: look at the linker script",
        image.len()
    );
    image.resize(size, 0);
    let checksum = crc32_with_hole(&image, CHECKSUM_OFFSET);
    image[CHECKSUM_OFFSET..CHECKSUM_OFFSET + 4].copy_from_slice(&checksum.to_le_bytes());
    Ok(image)
}

/// A cell's image: from guest-physical address 0 on.
///
/// # Errors
/// When the file is no ELF file.
pub fn cell(elf: &[u8]) -> Result<Vec<u8>> {
    flatten(elf, 0, |segment| segment.p_paddr(LittleEndian))
}

fn flatten(elf: &[u8], base: u64, address: impl Fn(&Segment) -> u64) -> Result<Vec<u8>> {
    let header = FileHeader64::<LittleEndian>::parse(elf).context("it is no ELF file")?;
    let segments = header
        .program_headers(LittleEndian, elf)
        .context("it has no program headers")?;
    let mut image = Vec::new();
    for segment in segments {
        let size = segment.p_filesz(LittleEndian);
        if segment.p_type(LittleEndian) != PT_LOAD || size == 0 {
            continue;
        }
        let start = address(segment);
        let offset = start
            .checked_sub(base)
            .filter(|offset| *offset < LARGEST && size < LARGEST)
            .with_context(|| format!("a segment lies at {start:#x}, far from {base:#x}"))?;
        let data = segment
            .data(LittleEndian, elf)
            .ok()
            .context("a segment is truncated")?;
        let (from, to) = (offset as usize, offset as usize + data.len());
        if image.len() < to {
            image.resize(to, 0);
        }
        image[from..to].copy_from_slice(data);
    }
    ensure!(!image.is_empty(), "it has nothing to load");
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file with one segment for each (virtual address, physical address, bytes).
    fn elf(segments: &[(u64, u64, &[u8])]) -> Vec<u8> {
        let mut file = vec![0; 64 + 56 * segments.len()];
        file[..8].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0]);
        file[32..40].copy_from_slice(&64_u64.to_le_bytes());
        file[54..56].copy_from_slice(&56_u16.to_le_bytes());
        file[56..58].copy_from_slice(&(segments.len() as u16).to_le_bytes());
        for (index, (virtual_address, physical, bytes)) in segments.iter().enumerate() {
            let offset = file.len() as u64;
            let at = 64 + 56 * index;
            file[at..at + 4].copy_from_slice(&1_u32.to_le_bytes());
            for (field, value) in [
                (8, offset),
                (16, *virtual_address),
                (24, *physical),
                (32, bytes.len() as u64),
                (40, bytes.len() as u64),
            ] {
                file[at + field..at + field + 8].copy_from_slice(&value.to_le_bytes());
            }
            file.extend_from_slice(bytes);
        }
        file
    }

    #[test]
    fn segments_are_laid_out_by_address() {
        let file = elf(&[(0x1000, 4, b"cd"), (0x2000, 0, b"ab")]);
        assert_eq!(cell(&file).unwrap(), b"ab\0\0cd");
    }

    #[test]
    fn a_segment_far_away_is_refused() {
        assert!(cell(&elf(&[(0, 0x8000_0000, b"x")])).is_err());
        assert!(hypervisor(&elf(&[(0x1000, 0, b"x")])).is_err());
        assert!(cell(&elf(&[])).is_err());
        assert!(cell(b"nothing").is_err());
    }

    fn header(file_size: u64) -> ImageHeader {
        let mut header = ImageHeader::read_from_bytes(&[0; size_of::<ImageHeader>()]).unwrap();
        header.signature = SIGNATURE;
        header.file_size = file_size;
        header.memory_size = file_size;
        header
    }

    #[test]
    fn the_hypervisor_gets_its_checksum() {
        use zerocopy::IntoBytes;
        let file = elf(&[(LINK_BASE, 0, header(8192).as_bytes())]);
        let image = hypervisor(&file).unwrap();
        assert_eq!(image.len(), 8192);
        let stored = u32::from_le_bytes(image[CHECKSUM_OFFSET..][..4].try_into().unwrap());
        assert_eq!(stored, crc32_with_hole(&image, CHECKSUM_OFFSET));
        assert_ne!(stored, 0);
    }

    #[test]
    fn a_header_that_is_too_small_is_refused() {
        use zerocopy::IntoBytes;
        assert!(hypervisor(&elf(&[(LINK_BASE, 0, header(8).as_bytes())])).is_err());
    }
}
