//! `gaol-peek PHYSICAL SIZE`: copies memory that a cell shares with the root to standard output.
//!
//! The address and the size are those that sysfs tells, in hexadecimal. What the cell writes meanwhile may be seen in
//! part; a reader that needs more looks for the cell's own sign that it is done.

use std::fs::File;
use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};
use rustix::mm::{MapFlags, ProtFlags, mmap};

/// The device that maps shared memory.
const DEVICE: &str = "/dev/gaol";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gaol-peek: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut arguments = std::env::args().skip(1).map(|text| {
        u64::from_str_radix(text.trim_start_matches("0x"), 16)
            .with_context(|| format!("`{text}` is not a hexadecimal number"))
    });
    let physical = arguments
        .next()
        .context("the physical address is missing")??;
    let size = usize::try_from(arguments.next().context("the size is missing")??)?;
    let device = File::open(DEVICE).with_context(|| format!("cannot open {DEVICE}"))?;
    // SAFETY: the address is the kernel's choice, so that nothing of this process is replaced.
    let mapping = unsafe {
        mmap(
            std::ptr::null_mut(),
            size,
            ProtFlags::READ,
            MapFlags::SHARED,
            &device,
            physical,
        )
    }
    .with_context(|| format!("cannot map {size:#x} bytes at {physical:#x}"))?;
    let copy: Vec<u8> = (0..size)
        .map(|offset| {
            // SAFETY: `mapping` is readable for `size` bytes; the cell may write them at any time, hence volatile.
            unsafe { mapping.cast::<u8>().add(offset).read_volatile() }
        })
        .collect();
    std::io::stdout().write_all(&copy)?;
    Ok(())
}
