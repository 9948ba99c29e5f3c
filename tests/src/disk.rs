//! A disk image from which a BIOS starts a stock kernel within two seconds of an emulator's time.
//!
//! The kernel is unpacked on the host, laid out as its ELF program headers ask, and copied to memory by a boot sector
//! of 512 bytes. Every place in the machine's memory is computed from the sizes at hand, and a machine with too little
//! memory is refused here rather than left to hang.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use object::LittleEndian;
use object::elf::{self, FileHeader64};
use object::read::elf::{FileHeader, ProgramHeader};

use crate::kernel::{SETUP_HEADER, Unpacked};

const SECTOR: usize = 512;
const PAGE: usize = 4096;
const LARGE_PAGE: u64 = 2 << 20;
/// The geometry that the BIOS is told; only the product matters.
const HEADS: u64 = 16;
const SECTORS_PER_TRACK: u64 = 63;
/// The first extent's sector; the ones before are the boot sector's track.
const FIRST_SECTOR: u64 = 64;
/// Offset of the table that the boot sector reads (`handover` in boot_sector.S).
const HANDOVER: usize = 0x1b8;
/// The most extents that fit into the table.
const MAX_EXTENTS: usize = 4;
const BOOT_SECTOR: &str = include_str!("boot_sector.S");
/// Where a BIOS loads the boot sector.
const BOOT_SECTOR_ADDRESS: &str = "0x7c00";

/// What a kernel is started with.
pub struct BootImage<'a> {
    /// The kernel.
    pub kernel: &'a Unpacked,
    /// The initial RAM disk, a cpio archive.
    pub initrd: &'a [u8],
    /// The kernel's command line.
    pub command_line: &'a str,
    /// The machine's memory in MiB.
    pub memory_mib: u32,
}

/// The geometry of a written image: cylinders, heads, sectors per track.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Number of cylinders.
    pub cylinders: u64,
    /// Number of heads.
    pub heads: u64,
    /// Number of sectors in a track.
    pub sectors_per_track: u64,
}

/// A piece of the machine's memory that the boot sector fills from the disk.
struct Extent {
    address: u64,
    bytes: Vec<u8>,
}

impl Extent {
    fn sectors(&self) -> u64 {
        self.bytes.len().div_ceil(SECTOR) as u64
    }
}

impl BootImage<'_> {
    /// Writes the disk image to `path`; the assembler's files go to `scratch`.
    ///
    /// # Errors
    /// When the machine has too little memory, binutils are missing, or a file cannot be written.
    pub fn write(&self, path: &Path, scratch: &Path) -> Result<Geometry> {
        let kernel = load_elf(&self.kernel.elf)?;
        let parameters_at = kernel.end.next_multiple_of(LARGE_PAGE);
        let command_line_at = parameters_at + PAGE as u64;
        let tables_at = parameters_at + 2 * PAGE as u64;
        let tables = identity_map(tables_at);
        let initrd_at = (tables_at + tables.len() as u64).next_multiple_of(LARGE_PAGE);
        let memory_map = memory_map(self.memory_mib)?;
        let free_end = (u64::from(self.memory_mib) << 20) - ACPI_TABLES;
        ensure!(
            initrd_at + self.initrd.len() as u64 <= free_end,
            "the kernel and its initrd of {} KiB do not fit into {} MiB: give the machine more memory",
            self.initrd.len() / 1024,
            self.memory_mib
        );

        let mut parameters = boot_parameters(
            &self.kernel.setup_header,
            command_line_at,
            initrd_at,
            self.initrd.len(),
            &memory_map,
        )?;
        let mut command_line = self.command_line.as_bytes().to_vec();
        ensure!(
            command_line.len() < 2048,
            "the kernel's command line is longer than the 2047 bytes that Linux takes"
        );
        command_line.resize(PAGE, 0);
        parameters.extend_from_slice(&command_line);
        parameters.extend_from_slice(&tables);

        let entry = kernel.entry;
        let extents = [
            Extent {
                address: kernel.base,
                bytes: kernel.bytes,
            },
            Extent {
                address: parameters_at,
                bytes: parameters,
            },
            Extent {
                address: initrd_at,
                bytes: self.initrd.to_vec(),
            },
        ];
        let handover = handover(&extents, tables_at, parameters_at, entry)?;
        let mut sector = assemble_boot_sector(scratch)?;
        sector[HANDOVER..HANDOVER + handover.len()].copy_from_slice(&handover);
        write_image(path, &sector, &extents)
    }
}

fn write_image(path: &Path, boot_sector: &[u8], extents: &[Extent]) -> Result<Geometry> {
    let write = || -> Result<u64> {
        let mut file = File::create(path)?;
        file.write_all(boot_sector)?;
        let mut next = FIRST_SECTOR;
        for extent in extents {
            file.seek(SeekFrom::Start(next * SECTOR as u64))?;
            file.write_all(&extent.bytes)?;
            next += extent.sectors();
        }
        let cylinders = next.div_ceil(HEADS * SECTORS_PER_TRACK);
        file.set_len(cylinders * HEADS * SECTORS_PER_TRACK * SECTOR as u64)?;
        Ok(cylinders)
    };
    let cylinders = write().with_context(|| format!("cannot write {}", path.display()))?;
    Ok(Geometry {
        cylinders,
        heads: HEADS,
        sectors_per_track: SECTORS_PER_TRACK,
    })
}

/// A kernel as it lies in memory.
struct LoadedKernel {
    base: u64,
    /// The end of all it uses, its zeroed part included.
    end: u64,
    entry: u64,
    /// The part that has content.
    bytes: Vec<u8>,
}

fn load_elf(bytes: &[u8]) -> Result<LoadedKernel> {
    let header = FileHeader64::<LittleEndian>::parse(bytes).context("the kernel is no ELF file")?;
    let endian = LittleEndian;
    let segments: Vec<_> = header
        .program_headers(endian, bytes)
        .context("the kernel has no program headers")?
        .iter()
        .filter(|segment| segment.p_type(endian) == elf::PT_LOAD)
        .collect();
    let base = segments
        .iter()
        .map(|segment| segment.p_paddr(endian))
        .min()
        .context("the kernel has nothing to load")?;
    let mut loaded = LoadedKernel {
        base,
        end: base,
        entry: header.e_entry(endian),
        bytes: Vec::new(),
    };
    for segment in segments {
        let data = segment
            .data(endian, bytes)
            .ok()
            .context("the kernel is truncated")?;
        let at = usize::try_from(segment.p_paddr(endian) - base)?;
        if loaded.bytes.len() < at + data.len() {
            loaded.bytes.resize(at + data.len(), 0);
        }
        loaded.bytes[at..at + data.len()].copy_from_slice(data);
        loaded.end = loaded
            .end
            .max(segment.p_paddr(endian) + segment.p_memsz(endian));
    }
    ensure!(
        (base..loaded.end).contains(&loaded.entry),
        "the kernel's entry is not a physical address"
    );
    Ok(loaded)
}

/// What the BIOS keeps at the end of memory for its ACPI tables.
const ACPI_TABLES: u64 = 0x1_0000;

/// A line of the BIOS' memory map: start, length and type (1 usable, 2 reserved, 3 ACPI).
type MemoryRange = (u64, u64, u32);

/// The memory map as Bochs' BIOS reports it for this much memory.
fn memory_map(memory_mib: u32) -> Result<Vec<MemoryRange>> {
    if !(64..=3072).contains(&memory_mib) {
        bail!("a machine has 64 to 3072 MiB of memory, not {memory_mib}");
    }
    let top = u64::from(memory_mib) << 20;
    Ok(vec![
        (0, 0x9_fc00, 1),
        (0x9_fc00, 0x400, 2),
        (0xe_8000, 0x1_8000, 2),
        (0x10_0000, top - ACPI_TABLES - 0x10_0000, 1),
        (top - ACPI_TABLES, ACPI_TABLES, 3),
        (0xfffc_0000, 0x4_0000, 2),
    ])
}

/// The `boot_params` page ("The Linux/x86 Boot Protocol", "64-bit Boot Protocol" and "Zero Page").
fn boot_parameters(
    setup_header: &[u8],
    command_line: u64,
    initrd: u64,
    initrd_size: usize,
    memory_map: &[MemoryRange],
) -> Result<Vec<u8>> {
    let mut page = vec![0; PAGE];
    page[SETUP_HEADER..SETUP_HEADER + setup_header.len()].copy_from_slice(setup_header);
    let mut put = |offset: usize, bytes: &[u8]| {
        page[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    put(0x210, &[0xff]); // type_of_loader: one without a number
    put(0x218, &u32::try_from(initrd)?.to_le_bytes()); // ramdisk_image
    put(0x21c, &u32::try_from(initrd_size)?.to_le_bytes()); // ramdisk_size
    put(0x228, &u32::try_from(command_line)?.to_le_bytes()); // cmd_line_ptr
    put(0x1e8, &[u8::try_from(memory_map.len())?]); // e820_entries
    for (index, (start, length, kind)) in memory_map.iter().enumerate() {
        let entry = 0x2d0 + 20 * index; // e820_table
        put(entry, &start.to_le_bytes());
        put(entry + 8, &length.to_le_bytes());
        put(entry + 16, &kind.to_le_bytes());
    }
    page[0x211] |= 1; // loadflags: LOADED_HIGH
    Ok(page)
}

/// Page tables at `address` that map the first 4 GiB one to one in large pages.
fn identity_map(address: u64) -> Vec<u8> {
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE: u64 = 1 << 7;
    let page = |index: u64| address + index * PAGE as u64;
    let mut entries = vec![0_u64; 6 * 512];
    entries[0] = page(1) | PRESENT_WRITABLE;
    for directory in 0..4_u64 {
        entries[512 + directory as usize] = page(2 + directory) | PRESENT_WRITABLE;
        for index in 0..512 {
            entries[(1024 + directory * 512 + index) as usize] =
                ((directory * 512 + index) * LARGE_PAGE) | LARGE | PRESENT_WRITABLE;
        }
    }
    entries
        .iter()
        .flat_map(|entry| entry.to_le_bytes())
        .collect()
}

/// The table that boot_sector.S reads.
fn handover(extents: &[Extent], tables: u64, parameters: u64, entry: u64) -> Result<Vec<u8>> {
    ensure!(extents.len() <= MAX_EXTENTS, "the boot sector is too small");
    let mut words = vec![tables, parameters, entry];
    let mut sector = FIRST_SECTOR;
    for extent in extents {
        words.extend([extent.address, sector, extent.sectors()]);
        sector += extent.sectors();
    }
    words.push(0);
    let mut bytes = Vec::new();
    for word in words {
        bytes.extend_from_slice(&u32::try_from(word)?.to_le_bytes());
    }
    Ok(bytes)
}

fn assemble_boot_sector(scratch: &Path) -> Result<Vec<u8>> {
    let source = scratch.join("boot_sector.S");
    let object = scratch.join("boot_sector.o");
    let binary = scratch.join("boot_sector.bin");
    fs::write(&source, BOOT_SECTOR)?;
    run_tool(Command::new("as").arg(&source).arg("-o").arg(&object))?;
    run_tool(
        Command::new("ld")
            .args(["-Ttext", BOOT_SECTOR_ADDRESS, "--oformat", "binary", "-o"])
            .arg(&binary)
            .arg(&object),
    )?;
    let bytes = fs::read(&binary)?;
    ensure!(bytes.len() == SECTOR, "the boot sector is not one sector");
    for file in [source, object, binary] {
        fs::remove_file(file)?;
    }
    Ok(bytes)
}

fn run_tool(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| {
        format!("cannot run `{program}`: install the Debian package `binutils`")
    })?;
    ensure!(
        output.status.success(),
        "`{program}` failed on the boot sector: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_map_the_last_page_below_4_gib() {
        let tables = identity_map(0x20_0000);
        let last = u64::from_le_bytes(tables[tables.len() - 8..].try_into().unwrap());
        assert_eq!(last, 0xffe0_0083);
        assert_eq!(
            u64::from_le_bytes(tables[..8].try_into().unwrap()),
            0x20_1003
        );
    }

    #[test]
    fn handover_lists_extents_back_to_back() {
        let extents = [
            Extent {
                address: 0x10_0000,
                bytes: vec![0; 513],
            },
            Extent {
                address: 0x20_0000,
                bytes: vec![0; 1],
            },
        ];
        let bytes = handover(&extents, 1, 2, 3).unwrap();
        let words: Vec<u32> = bytes
            .chunks(4)
            .map(|chunk| u32::from_le_bytes(chunk.try_into().unwrap()))
            .collect();
        assert_eq!(words, [1, 2, 3, 0x10_0000, 64, 2, 0x20_0000, 66, 1, 0]);
    }

    #[test]
    fn the_table_fits_the_boot_sector() {
        let extents: Vec<Extent> = (0..MAX_EXTENTS)
            .map(|_| Extent {
                address: 1,
                bytes: vec![],
            })
            .collect();
        assert!(HANDOVER + handover(&extents, 0, 0, 0).unwrap().len() <= SECTOR - 2);
    }

    #[test]
    fn memory_outside_the_bios_map_is_refused() {
        assert!(memory_map(32).is_err());
        assert!(memory_map(4096).is_err());
        let map = memory_map(512).unwrap();
        assert_eq!(map[3].0 + map[3].1, map[4].0);
    }
}
