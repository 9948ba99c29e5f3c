//! What the command asks of the module, without saying how.
//!
//! Invariant: commands see only this trait, so that all of them run in tests against a device that is made up.

use std::io;
use std::time::Duration;

use gaol_abi::outcome::Outcome;

use crate::arguments::{CellName, Fault};

/// Why the device did not do it.
#[derive(Debug)]
pub enum DeviceError {
    /// The device could not be opened.
    Open(io::Error),
    /// The request was refused: the error number, and what the module or the hypervisor says.
    Refused {
        /// Error number of the system call.
        errno: i32,
        /// The reason.
        outcome: Outcome,
        /// Of a cell that there was no memory for: index of the region.
        region: u32,
    },
}

/// The result of a request.
pub type Result<T> = std::result::Result<T, DeviceError>;

/// What enabling told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Enabled {
    /// Host-physical address of the hypervisor's memory.
    pub region_physical: u64,
    /// Its size in bytes.
    pub region_size: u64,
    /// Cycles from the first CPU's entry to the return of the last.
    pub cycles: u64,
}

/// What an operation on a cell took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Cycles in the hypervisor, scrubbing apart.
    pub cycles: u64,
    /// Cycles for scrubbing.
    pub scrub_cycles: u64,
}

/// What creating a cell told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Created {
    /// Number of the cell.
    pub id: u32,
    /// What it took.
    pub cost: Cost,
}

/// What to do with a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Start it.
    Start,
    /// Ask it to end and stop it.
    Shutdown,
    /// Stop it and give everything back.
    Destroy,
}

/// Bytes for a cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Load {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Guest-physical address.
    pub address: u64,
}

/// A console as a stream of [`RingEntry`](gaol_abi::public::RingEntry).
pub trait Console {
    /// Reads the next bytes of entries; none when there is no more (for now, unless it waits).
    ///
    /// # Errors
    /// What the device says.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Waits for something to read, but no longer than this. Whether there is.
    ///
    /// # Errors
    /// What the device says.
    fn wait(&mut self, longest: Duration) -> io::Result<bool>;
}

/// The module.
pub trait Device {
    /// Enables the hypervisor.
    ///
    /// # Errors
    /// Why not.
    fn enable(&mut self, image: &[u8], config: &[u8], fault: Option<Fault>) -> Result<Enabled>;

    /// Disables the hypervisor.
    ///
    /// # Errors
    /// Why not.
    fn disable(&mut self, force: bool) -> Result<Cost>;

    /// Creates a cell; `pieces`: a region may be made of several pieces of memory.
    ///
    /// # Errors
    /// Why not.
    fn create(&mut self, config: &[u8], pieces: bool, force: bool) -> Result<Created>;

    /// Announces memory blocks, by address, that are about to be taken offline for the requests that follow.
    ///
    /// # Errors
    /// Why not.
    fn offer_memory(&mut self, blocks: &[u64], block_size: u64) -> Result<()>;

    /// Ends what was announced: memory blocks that are not in use are anyone's then.
    fn close(&mut self);

    /// Stops a cell and loads bytes into its memory.
    ///
    /// # Errors
    /// Why not.
    fn load(&mut self, cell: &CellName, loads: &[Load]) -> Result<Cost>;

    /// Starts, stops or destroys a cell.
    ///
    /// # Errors
    /// Why not.
    fn command(&mut self, operation: Operation, cell: &CellName, force: bool) -> Result<Cost>;

    /// Opens the console, waiting for more at its end or not.
    ///
    /// # Errors
    /// Why not.
    fn console(&mut self, follow: bool) -> Result<Box<dyn Console>>;

    /// A copy of memory that a cell shares with Linux. Each aligned 8 bytes are read at once, so that no number is torn.
    ///
    /// # Errors
    /// Why not.
    fn shared_memory(&mut self, physical: u64, size: usize) -> Result<Vec<u64>>;
}
