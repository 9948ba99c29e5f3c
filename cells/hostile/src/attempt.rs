//! What can be attempted, as data.

/// Bytes of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// 1.
    Byte,
    /// 2.
    Word,
    /// 4.
    Long,
    /// 8; not of ports.
    Quad,
}

impl Width {
    /// All bits of this width set.
    pub const fn ones(self) -> u64 {
        match self {
            Self::Byte => 0xff,
            Self::Word => 0xffff,
            Self::Long => 0xffff_ffff,
            Self::Quad => u64::MAX,
        }
    }

    /// Bytes.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Byte => 1,
            Self::Word => 2,
            Self::Long => 4,
            Self::Quad => 8,
        }
    }
}

/// A place in guest-physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// An address.
    At(u64),
    /// An offset from where the hypervisor is in the machine (`hypervisor=` of the command line).
    Hypervisor(u64),
    /// An offset from where the memory of another cell is in the machine (`victim=`).
    Victim(u64),
    /// An offset in the cell's own RAM that no program uses; see [`SCRATCH_SIZE`].
    Scratch(u64),
    /// An offset in the communication region.
    Communication(u64),
    /// An offset in the memory that is shared with the root; see [`SHARED_SIZE`].
    Shared(u64),
    /// An offset in memory that may only be read.
    Constant(u64),
    /// An offset in memory that may not be executed.
    Data(u64),
}

/// Where [`Place::Scratch`] begins: the runtime's image ends below.
pub const SCRATCH: u64 = 0xb_0000;
/// Bytes there.
pub const SCRATCH_SIZE: u64 = 0x5_0000;
/// Where the cell's configuration has the memory that is shared with the root.
pub const SHARED: u64 = 0x20_0000;
/// Bytes there.
pub const SHARED_SIZE: u64 = 0x1_0000;
/// Where the cell's configuration has memory that may only be read.
pub const CONSTANT: u64 = 0x40_0000;
/// Where the cell's configuration has memory that may not be executed.
pub const DATA: u64 = 0x60_0000;
/// Bytes of [`CONSTANT`] and of [`DATA`].
pub const SMALL_SIZE: u64 = 0x1000;
/// Where the command line's `hypervisor=` and `victim=` are unless it names them: the cell has no memory there.
pub const FOREIGN: u64 = 0x1000_0000;

/// What is done with a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// MOV from it.
    Read(Width),
    /// MOV to it.
    Write(Width, u64),
    /// LOCK ADD to it.
    Add(Width, u64),
    /// REP STOSB across it, so many bytes.
    Fill(u64),
    /// REP MOVSB from there to the scratch memory, so many bytes.
    Copy(u64),
    /// JMP to it.
    Execute,
    /// PUSH, with the stack pointer there.
    Push,
    /// CR3 points there.
    PageTables,
    /// The descriptor table is there, and a segment is loaded from it.
    Descriptors,
    /// The interrupt table is there, and an exception is raised.
    Interrupts,
}

/// A control or debug register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// CR0.
    Cr0,
    /// CR2.
    Cr2,
    /// CR3.
    Cr3,
    /// CR4.
    Cr4,
    /// CR8.
    Cr8,
    /// DR6.
    Dr6,
    /// DR7.
    Dr7,
}

/// A register of CPUID's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

/// To whom an interrupt goes, where its command has no shorthand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The APIC id of the sender.
    Own,
    /// This APIC id, or this logical destination.
    Id(u32),
}

/// A single instruction without operands that matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the instructions'")]
pub enum Instruction {
    Vmxon,
    Vmxoff,
    Vmclear,
    Vmptrld,
    Vmptrst,
    Vmlaunch,
    Vmresume,
    Vmread,
    Vmwrite,
    Vmfunc,
    Invept,
    Invvpid,
    Vmrun,
    Vmload,
    Vmsave,
    Vmmcall,
    Stgi,
    Clgi,
    Skinit,
    Getsec,
    Rsm,
    Encls,
    Invd,
    Wbinvd,
    Clts,
    Lmsw,
    Smsw,
    Sgdt,
    Sldt,
    Str,
    Ud2,
    Int1,
    Int3,
    IntNmi,
    MovCr1,
    MovCr5,
    Rdpmc,
    Rdtsc,
    Pause,
    Monitor,
    Invlpg,
    InvlpgNonCanonical,
    LtrGarbage,
    LldtGarbage,
    FarJumpToGarbage,
    IretToGarbage,
    TaskGate,
    Xgetbv,
}

/// Several instructions after which this CPU goes on no more by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// An exception without an interrupt table.
    TripleFault,
    /// CR3 leads to a page of zeros.
    EmptyPageTables,
    /// CR3 leads to random numbers.
    RandomPageTables,
    /// The interrupt table is random numbers, and exceptions come.
    RandomInterrupts,
    /// The stack pointer is not canonical, and an exception comes.
    NoStack,
    /// The general protection handler raises a general protection fault: double fault, triple fault.
    FaultInHandler,
    /// HLT with interrupts off.
    HaltForEver,
    /// JMP to itself with interrupts off.
    SpinForEver,
    /// Each #DB hits a breakpoint on its own stack.
    DebugForEver,
    /// A repeated string instruction that runs over memory again and again.
    StringForEver,
    /// INIT to itself.
    InitOwn,
    /// A jump to a task state in 32-bit protected mode.
    TaskSwitch,
    /// PAE paging with top entries that are random numbers.
    GarbagePae,
    /// An exception in real mode without a table.
    RealModeWithoutTable,
    /// A jump to the last address of real mode.
    RealModeBeyond,
    /// A read at the end of the last segment of real mode.
    RealModeSegmentEnd,
}

/// Something that a cell should not be able to do, or that should concern nobody but the cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// RDMSR.
    ReadMsr(u32),
    /// WRMSR.
    WriteMsr(u32, u64),
    /// RDMSR, WRMSR with the first bits set and the second ones cleared, RDMSR and the old value back.
    ChangeMsr(u32, u64, u64),
    /// IN.
    In(u16, Width),
    /// OUT.
    Out(u16, Width, u32),
    /// REP INSB or its kin to the scratch memory, so many times.
    InString(u16, Width, u64),
    /// REP OUTSB or its kin from the scratch memory, so many times.
    OutString(u16, Width, u64),
    /// An access to memory.
    Memory(Place, Use),
    /// VMCALL with a number and two arguments.
    Hypercall(u32, u64, u64),
    /// A write of the interrupt command register: the low half, and a destination.
    Interrupt(Destination, u32),
    /// MOV to a control register of what it holds with the first bits set and the second ones cleared; then the old value
    /// back.
    ChangeControl(Control, u64, u64),
    /// XSETBV of a register and a value.
    ExtendedControl(u32, u64),
    /// CPUID of a leaf and subleaf: a register of it, of which these bits count.
    Cpuid(u32, u32, Register, u32),
    /// A read of PCI configuration space by mechanism 1: the address, and the width of the read.
    ReadPci(u32, Width),
    /// A write there.
    WritePci(u32, Width, u32),
    /// An instruction.
    Execute(Instruction),
    /// An instruction at the lowest privilege, from a page of its own.
    ExecuteAsUser(UserInstruction),
    /// The end of this CPU.
    End(Ending),
}

impl Attempt {
    /// Whether QEMU's processors do not refuse it as others do: they take reserved bits of control registers, and what a cell
    /// has there then is no state that a processor can be in; a register that there is not reads as 0; INT1 is no
    /// instruction; XSETBV looks at the privilege first.
    #[must_use]
    pub const fn is_beyond_qemu(&self) -> bool {
        matches!(
            self,
            Self::ChangeControl(
                Control::Cr0 | Control::Cr3 | Control::Cr4 | Control::Cr8,
                _,
                _
            ) | Self::ReadMsr(0x3a)
                | Self::Execute(Instruction::Int1)
                | Self::ExecuteAsUser(UserInstruction::Xsetbv)
        )
    }
}

/// What is executed at CPL 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserInstruction {
    /// VMCALL, the hypercall 5 that anybody at CPL 0 may make.
    Vmcall,
    /// VMCALL, the hypercall that prints.
    VmcallPrint,
    /// VMXOFF.
    Vmxoff,
    /// HLT.
    Halt,
    /// RDMSR.
    Rdmsr,
    /// IN from port 0x64, without permission of the cell itself.
    In,
    /// INVD.
    Invd,
    /// XSETBV.
    Xsetbv,
}
