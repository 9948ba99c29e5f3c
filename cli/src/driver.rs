//! `/dev/gaol`: the device as it is.
//!
//! Requests go through one open file, which stands for this process in the module: memory blocks that are offered through it
//! are for its requests.
//!
//! The only file of the command with `unsafe`: requests carry addresses of buffers, which no type can follow into the
//! kernel, and mapped memory is shared with a cell.

use std::ffi::c_void;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::ptr;
use std::time::Duration;

use gaol_abi::driver::{
    CellCommand, CellCreateRequest, CellLoadRequest, CellReference, EnableRequest,
    FLAG_CREATE_FORCE, FLAG_FORCE, FLAG_PIECES, IOCTL_CELL_CREATE, IOCTL_CELL_DESTROY,
    IOCTL_CELL_LOAD, IOCTL_CELL_SHUTDOWN, IOCTL_CELL_START, IOCTL_DISABLE, IOCTL_ENABLE,
    IOCTL_MEMORY_OFFER, IOCTL_TYPE, LoadImage, MAX_LOAD_IMAGES, MemoryOfferRequest,
};
use gaol_abi::outcome::{Outcome, Reason};
use gaol_abi::{ABI_REVISION, NAME_LENGTH};
use rustix::event::{self, PollFd, PollFlags, Timespec};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::ioctl::{self, Opcode, Updater, opcode};
use rustix::mm::{MapFlags, ProtFlags};
use zerocopy::FromZeros;

use crate::arguments::{CellName, Fault};
use crate::device::{
    Console, Cost, Created, Device, DeviceError, Enabled, Load, Operation, Result,
};

/// The device that the module makes.
pub struct Driver {
    path: PathBuf,
    /// For all requests; opened for the first.
    file: Option<File>,
}

/// A structure that the module reads and writes back.
trait Request: Sized {
    fn outcome(&self) -> Outcome;
    /// Index of the region that there was no memory for.
    fn region(&self) -> u32 {
        0
    }
}

macro_rules! requests {
    ($($request:ty),+) => { $(
        impl Request for $request {
            fn outcome(&self) -> Outcome {
                self.outcome
            }
        }
    )+ };
}

requests!(
    EnableRequest,
    CellLoadRequest,
    CellCommand,
    MemoryOfferRequest
);

impl Request for CellCreateRequest {
    fn outcome(&self) -> Outcome {
        self.outcome
    }

    fn region(&self) -> u32 {
        self.region
    }
}

const ENABLE: Opcode = opcode::read_write::<EnableRequest>(IOCTL_TYPE, IOCTL_ENABLE);
const DISABLE: Opcode = opcode::read_write::<CellCommand>(IOCTL_TYPE, IOCTL_DISABLE);
const CREATE: Opcode = opcode::read_write::<CellCreateRequest>(IOCTL_TYPE, IOCTL_CELL_CREATE);
const LOAD: Opcode = opcode::read_write::<CellLoadRequest>(IOCTL_TYPE, IOCTL_CELL_LOAD);
const START: Opcode = opcode::read_write::<CellCommand>(IOCTL_TYPE, IOCTL_CELL_START);
const SHUTDOWN: Opcode = opcode::read_write::<CellCommand>(IOCTL_TYPE, IOCTL_CELL_SHUTDOWN);
const DESTROY: Opcode = opcode::read_write::<CellCommand>(IOCTL_TYPE, IOCTL_CELL_DESTROY);
const OFFER: Opcode = opcode::read_write::<MemoryOfferRequest>(IOCTL_TYPE, IOCTL_MEMORY_OFFER);

fn refused(errno: Errno, outcome: Outcome, region: u32) -> DeviceError {
    DeviceError::Refused {
        errno: errno.raw_os_error(),
        outcome,
        region,
    }
}

/// Without a word of the module.
fn failed(errno: Errno) -> DeviceError {
    refused(errno, Outcome::new_zeroed(), 0)
}

/// The address of a buffer as the module takes it.
fn address<T>(buffer: &[T]) -> u64 {
    buffer.as_ptr().expose_provenance() as u64
}

fn reference(cell: &CellName) -> CellReference {
    match cell {
        CellName::Id(id) => CellReference {
            id: i32::try_from(*id).unwrap_or(i32::MAX),
            reserved: 0,
            name: [0; NAME_LENGTH],
        },
        CellName::Name(name) => CellReference {
            id: -1,
            reserved: 0,
            name: gaol_config::encode::name(name).unwrap_or_default(),
        },
    }
}

fn open(path: &Path, flags: OFlags) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags.bits() as i32)
        .open(path)
        .map_err(DeviceError::Open)
}

impl Driver {
    /// The device at `path`.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path, file: None }
    }

    fn request<const OPCODE: Opcode, T: Request>(&mut self, request: &mut T) -> Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            closed => closed.insert(open(&self.path, OFlags::empty())?),
        };
        // SAFETY: each opcode is used with the structure that it was made of (its size is part of it, and the module
        // refuses another), and all of these are plain data for which any bytes are valid. The buffers that they name
        // are borrowed by the callers until this returns, and the module only reads them.
        let result = unsafe { ioctl::ioctl(&*file, Updater::<OPCODE, T>::new(request)) };
        result.map_err(|errno| refused(errno, request.outcome(), request.region()))
    }
}

impl Device for Driver {
    fn enable(&mut self, image: &[u8], config: &[u8], fault: Option<Fault>) -> Result<Enabled> {
        let mut request = EnableRequest {
            revision: ABI_REVISION,
            fault_cpu: fault.map_or(0, |fault| fault.cpu),
            fault_step: fault.map_or(0, |fault| fault.step),
            image: address(image),
            image_size: image.len() as u64,
            config: address(config),
            config_size: config.len() as u64,
            ..EnableRequest::new_zeroed()
        };
        self.request::<ENABLE, _>(&mut request)?;
        Ok(Enabled {
            region_physical: request.region_physical,
            region_size: request.region_size,
            cycles: request.cycles,
        })
    }

    fn disable(&mut self, force: bool) -> Result<Cost> {
        let mut request = CellCommand {
            revision: ABI_REVISION,
            flags: if force { FLAG_FORCE } else { 0 },
            ..CellCommand::new_zeroed()
        };
        self.request::<DISABLE, _>(&mut request)?;
        Ok(Cost {
            cycles: request.cycles,
            scrub_cycles: request.scrub_cycles,
        })
    }

    fn create(&mut self, config: &[u8], pieces: bool, force: bool) -> Result<Created> {
        let mut request = CellCreateRequest {
            revision: ABI_REVISION,
            flags: if pieces { FLAG_PIECES } else { 0 } | if force { FLAG_CREATE_FORCE } else { 0 },
            config: address(config),
            config_size: config.len() as u64,
            ..CellCreateRequest::new_zeroed()
        };
        self.request::<CREATE, _>(&mut request)?;
        Ok(Created {
            id: u32::try_from(request.id).unwrap_or_default(),
            cost: Cost {
                cycles: request.cycles,
                scrub_cycles: request.scrub_cycles,
            },
        })
    }

    fn offer_memory(&mut self, blocks: &[u64], block_size: u64) -> Result<()> {
        let mut request = MemoryOfferRequest {
            revision: ABI_REVISION,
            block_count: u32::try_from(blocks.len()).unwrap_or(u32::MAX),
            blocks: address(blocks),
            block_size,
            ..MemoryOfferRequest::new_zeroed()
        };
        self.request::<OFFER, _>(&mut request)
    }

    fn close(&mut self) {
        self.file = None;
    }

    fn load(&mut self, cell: &CellName, loads: &[Load]) -> Result<Cost> {
        let images: Vec<LoadImage> = loads
            .iter()
            .map(|load| LoadImage {
                source: address(&load.bytes),
                size: load.bytes.len() as u64,
                target: load.address,
            })
            .collect();
        let image_count = u32::try_from(images.len())
            .ok()
            .filter(|count| *count <= MAX_LOAD_IMAGES)
            .ok_or(failed(Errno::TOOBIG))?;
        let mut request = CellLoadRequest {
            revision: ABI_REVISION,
            image_count,
            cell: reference(cell),
            images: address(&images),
            ..CellLoadRequest::new_zeroed()
        };
        self.request::<LOAD, _>(&mut request)?;
        Ok(Cost {
            cycles: request.cycles,
            scrub_cycles: 0,
        })
    }

    fn command(&mut self, operation: Operation, cell: &CellName, force: bool) -> Result<Cost> {
        let mut request = CellCommand {
            revision: ABI_REVISION,
            flags: if force { FLAG_FORCE } else { 0 },
            cell: reference(cell),
            ..CellCommand::new_zeroed()
        };
        match operation {
            Operation::Start => self.request::<START, _>(&mut request)?,
            Operation::Shutdown => self.request::<SHUTDOWN, _>(&mut request)?,
            Operation::Destroy => self.request::<DESTROY, _>(&mut request)?,
        }
        Ok(Cost {
            cycles: request.cycles,
            scrub_cycles: request.scrub_cycles,
        })
    }

    fn console(&mut self, follow: bool) -> Result<Box<dyn Console>> {
        let flags = match follow {
            true => OFlags::empty(),
            false => OFlags::NONBLOCK,
        };
        Ok(Box::new(open(&self.path, flags)?))
    }

    fn shared_memory(&mut self, physical: u64, size: usize) -> Result<Vec<u64>> {
        let file = open(&self.path, OFlags::empty())?;
        // SAFETY: a new mapping at an address that the kernel chooses touches nothing that exists.
        let memory = unsafe {
            rustix::mm::mmap(
                ptr::null_mut(),
                size,
                ProtFlags::READ,
                MapFlags::SHARED,
                &file,
                physical,
            )
        };
        let mapping = Mapping {
            memory: memory.map_err(failed)?,
            size,
        };
        Ok(mapping.words())
    }
}

/// Memory shared with a cell.
struct Mapping {
    memory: *mut c_void,
    size: usize,
}

impl Mapping {
    /// A copy of what is in the memory now.
    fn words(&self) -> Vec<u64> {
        let first = self.memory.cast::<u64>().cast_const();
        (0..self.size / size_of::<u64>())
            .map(|index| {
                // SAFETY: the index is inside the mapping, which lives as long as `self`, is readable, and begins at a
                // page. The cell may write at any time: the reads are volatile, and any bytes are a number.
                unsafe { ptr::read_volatile(first.add(index)) }
            })
            .collect()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `shared_memory` with this size, and nothing refers to it any more: what was
        // read is a copy. It can't fail for a mapping that exists.
        let _ = unsafe { rustix::mm::munmap(self.memory, self.size) };
    }
}

impl Console for File {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match Read::read(self, buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            result => result,
        }
    }

    fn wait(&mut self, longest: Duration) -> io::Result<bool> {
        let mut polled = [PollFd::new(self, PollFlags::IN)];
        let longest = Timespec::try_from(longest).map_err(io::Error::other)?;
        Ok(event::poll(&mut polled, Some(&longest))? != 0)
    }
}

/// Whether the reason is missing because the module does not even know the request.
#[must_use]
pub fn is_unknown_request(errno: i32, outcome: &Outcome) -> bool {
    let unknown = [Errno::NOTTY.raw_os_error(), Errno::INVAL.raw_os_error()];
    outcome.reason == Reason::None && unknown.contains(&errno)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `_IOWR(type, number, structure)`: direction in bits 30 and 31, size from bit 16, type from bit 8.
    #[test]
    fn opcodes_are_those_of_linux() {
        let expected = |number: u8, size: usize| {
            (0b11 << 30)
                | ((size as Opcode) << 16)
                | (Opcode::from(IOCTL_TYPE) << 8)
                | Opcode::from(number)
        };
        assert_eq!(ENABLE, expected(0, size_of::<EnableRequest>()));
        assert_eq!(DISABLE, expected(1, size_of::<CellCommand>()));
        assert_eq!(CREATE, expected(2, size_of::<CellCreateRequest>()));
        assert_eq!(LOAD, expected(3, size_of::<CellLoadRequest>()));
        assert_eq!(START, expected(4, size_of::<CellCommand>()));
        assert_eq!(SHUTDOWN, expected(5, size_of::<CellCommand>()));
        assert_eq!(DESTROY, expected(6, size_of::<CellCommand>()));
        assert_eq!(OFFER, expected(7, size_of::<MemoryOfferRequest>()));
    }

    #[test]
    fn cells_are_named_by_number_or_name() {
        assert_eq!(reference(&CellName::Id(3)).id, 3);
        let named = reference(&CellName::Name("latency".to_owned()));
        assert_eq!(named.id, -1);
        assert!(named.name.starts_with(b"latency\0"));
    }

    #[test]
    fn mapped_memory_is_copied_in_words() {
        let path = std::env::temp_dir().join(format!("gaol-driver-{}", std::process::id()));
        let words: Vec<u64> = (0..1024).map(|index| index * 0x0101_0101).collect();
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        std::fs::write(&path, bytes).unwrap();
        let mut driver = Driver::new(path.clone());
        assert_eq!(driver.shared_memory(0, 8192).unwrap(), words);
        assert_eq!(driver.shared_memory(4096, 4096).unwrap(), words[512..]);
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(
            driver.shared_memory(0, 8192),
            Err(DeviceError::Open(_))
        ));
    }

    #[test]
    fn a_file_that_is_no_device_refuses_without_a_reason() {
        let mut driver = Driver::new("/dev/null".into());
        let Err(DeviceError::Refused { errno, outcome, .. }) = driver.disable(false) else {
            panic!("/dev/null takes no requests");
        };
        assert!(is_unknown_request(errno, &outcome));
    }
}
