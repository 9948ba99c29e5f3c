//! What a CPU can do to itself.

use super::Expected::{Endless, Stopped};
use super::Violation;
use crate::attempt::Attempt::End;
use crate::attempt::Ending::*;

const SHUTDOWN: &str = "on a bare machine the processor would shut down, and the machine reset";
const BEYOND: &str = "it lies just beyond what the cell has";
const SILENT: &str = "nothing exits: only a kick gets the CPU back";

pub(super) const ROWS: &[Violation] = rows! {
    "triple fault": End(TripleFault) => Stopped, SHUTDOWN;
    "page tables of zeros": End(EmptyPageTables) => Stopped, SHUTDOWN;
    "page tables of random numbers": End(RandomPageTables) => Stopped, SHUTDOWN;
    "interrupt table of random numbers": End(RandomInterrupts) => Stopped, SHUTDOWN;
    "a stack at no canonical address": End(NoStack) => Stopped, SHUTDOWN;
    "a fault in the handler of faults": End(FaultInHandler) => Stopped, SHUTDOWN;
    "a task switch": End(TaskSwitch) => Stopped, "there are no task switches in a guest";
    "PAE paging by random numbers": End(GarbagePae) => Stopped, SHUTDOWN;
    "an exception in real mode without a table": End(RealModeWithoutTable) => Stopped, SHUTDOWN;
    "a program at the end of real mode's memory": End(RealModeBeyond) => Stopped, BEYOND;
    "a read at the end of real mode's memory": End(RealModeSegmentEnd) => Stopped, BEYOND;

    "halted with interrupts off": End(HaltForEver) => Endless, SILENT;
    "a jump to itself with interrupts off": End(SpinForEver) => Endless, SILENT;
    "a string instruction that never ends": End(StringForEver) => Endless, SILENT;
    "a breakpoint on the stack of its own handler": End(DebugForEver) => Endless, "the exceptions of one another would never let an NMI in";
    "INIT to itself": End(InitOwn) => Endless, "it waits for a startup IPI that nobody sends";
};
