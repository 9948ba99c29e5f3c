//! The logic of the cell that tries what is forbidden: what it can be told to do, and how it counts.
#![no_std]
#![forbid(unsafe_code)]

use core::fmt;

/// What the command line can name with `do=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Reads memory that is not the cell's, at `address=`, `bytes=` (4) bytes at once.
    MemoryRead,
    /// Writes there.
    MemoryWrite,
    /// Executes many instructions on its RAM and on a device's memory at `address=`, and compares what they do.
    Forms,
    /// Jumps there.
    MemoryExecute,
    /// Reads the port `port=`.
    PortIn,
    /// Writes `value=` to it.
    PortOut,
    /// Reads the model-specific register `msr=`.
    MsrRead,
    /// Writes `value=` to it.
    MsrWrite,
    /// Reads every model-specific register of the architecture's two ranges.
    MsrSweep,
    /// Raises an exception without an interrupt table.
    TripleFault,
    /// Writes forbidden values to control registers.
    ControlRegisters,
    /// Executes CPUID `count=` times.
    CpuidStorm,
    /// Makes the hypercalls that only the root cell may make, and some that do not exist.
    HypercallManagement,
    /// Lets the hypervisor fail as `kind=` says, where the launch permits it.
    HypervisorFault,
    /// Sends all kinds of interrupts to the CPU `target=`, and some to itself.
    Ipi,
    /// Empties the caches.
    Wbinvd,
    /// Executes the instructions of VMX.
    Vmx,
    /// Does all it can to its PCI function, whose memory is at `registers=` and whose ports are at `ports=`.
    Pci,
    /// Control and debug registers, single steps, features: whether each is as on bare hardware.
    Processor,
    /// Sends NMIs to itself.
    Nmi,
    /// Looks for what others have left in registers and in the memory from `from=` to `to=`; `inverted=` is the pattern.
    Inspect,
    /// Leaves the pattern there.
    Leave,
    /// Raises an exception with its stack at `address=`, where there is no memory.
    BadStack,
    /// Denies to be shut down, `denials=` times (0: always); with `lock=1`, also says that it is locked.
    Deny,
    /// Never answers; with `halt=1` it sleeps with interrupts off.
    Silent,
    /// Fills its communication region with ones, over and over again.
    Scribble,
    /// Panics.
    Panic,
    /// Raises an exception that it does not expect.
    Exception,
    /// Counts the cycles of what causes VM exits.
    Bench,
}

impl Action {
    /// All of them, with their names.
    pub const ALL: [(&'static str, Self); 29] = [
        ("memory-read", Self::MemoryRead),
        ("memory-write", Self::MemoryWrite),
        ("forms", Self::Forms),
        ("memory-execute", Self::MemoryExecute),
        ("port-in", Self::PortIn),
        ("port-out", Self::PortOut),
        ("msr-read", Self::MsrRead),
        ("msr-write", Self::MsrWrite),
        ("msr-sweep", Self::MsrSweep),
        ("triple-fault", Self::TripleFault),
        ("cr", Self::ControlRegisters),
        ("cpuid-storm", Self::CpuidStorm),
        ("hypercall-management", Self::HypercallManagement),
        ("hypervisor-fault", Self::HypervisorFault),
        ("ipi", Self::Ipi),
        ("wbinvd", Self::Wbinvd),
        ("vmx", Self::Vmx),
        ("pci", Self::Pci),
        ("processor", Self::Processor),
        ("nmi", Self::Nmi),
        ("inspect", Self::Inspect),
        ("leave", Self::Leave),
        ("bad-stack", Self::BadStack),
        ("deny", Self::Deny),
        ("silent", Self::Silent),
        ("scribble", Self::Scribble),
        ("panic", Self::Panic),
        ("exception", Self::Exception),
        ("bench", Self::Bench),
    ];

    /// The action of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .find_map(|(known, action)| (*known == name).then_some(*action))
    }
}

/// Cycles of one operation, from loops that execute it many times.
///
/// The time stamp counter of a machine with several emulated CPUs advances in steps, so single operations cannot be
/// timed; the mean of a loop is exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cycles {
    /// Sum of the loops' means, in hundredths of a cycle.
    sum: u64,
    /// The least of them.
    min: u64,
    /// The largest.
    max: u64,
    loops: u64,
}

impl Cycles {
    /// No loop yet.
    pub const NONE: Self = Self {
        sum: 0,
        min: u64::MAX,
        max: 0,
        loops: 0,
    };

    /// Adds a loop of `rounds` operations that took `cycles`, where the same loop without the operation took `empty`.
    pub fn add(&mut self, rounds: u64, cycles: u64, empty: u64) {
        let mean = cycles.saturating_sub(empty).saturating_mul(100) / rounds.max(1);
        self.sum = self.sum.saturating_add(mean);
        self.min = self.min.min(mean);
        self.max = self.max.max(mean);
        self.loops += 1;
    }
}

impl fmt::Display for Cycles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mean = self.sum / self.loops.max(1);
        let [mean, min, max] =
            [mean, self.min, self.max].map(|hundredths| (hundredths / 100, hundredths % 100));
        write!(f, "mean {}.{:02} ", mean.0, mean.1)?;
        write!(f, "min {}.{:02} max {}.{:02}", min.0, min.1, max.0, max.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    extern crate std;
    use std::string::ToString;

    #[test]
    fn each_name_means_one_action() {
        for (index, (name, action)) in Action::ALL.iter().enumerate() {
            assert_eq!(Action::named(name), Some(*action));
            assert!(
                !Action::ALL[..index]
                    .iter()
                    .any(|(_, other)| other == action)
            );
        }
        assert_eq!(Action::named("memory"), None);
        assert_eq!(Action::named(""), None);
    }

    #[test]
    fn cycles_are_means_of_loops() {
        let mut cycles = Cycles::NONE;
        cycles.add(1_000, 82_000, 2_000);
        cycles.add(1_000, 82_055, 2_000);
        cycles.add(1_000, 85_000, 2_000);
        assert_eq!(cycles.to_string(), "mean 81.01 min 80.00 max 83.00");
    }

    #[test]
    fn a_loop_faster_than_nothing_takes_no_time() {
        let mut cycles = Cycles::NONE;
        cycles.add(1_000, 1, 2);
        assert_eq!(cycles.to_string(), "mean 0.00 min 0.00 max 0.00");
    }
}
