//! What a device can be made to attack, as data.

/// Bytes of a transfer by DMA.
pub const LENGTH: u32 = 64;
/// What a device that is left to itself writes, over and over again.
pub const LEFT: [u8; 8] = *b"edu-dma!";
/// Where in the cell's memory for devices it writes that.
pub const LEFT_AT: u64 = 0x8000;

/// A place that a device is sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// An offset in the cell's memory for devices.
    Own(u32),
    /// So many bytes before the end of that memory.
    BeforeEnd(u32),
    /// So many bytes before its beginning.
    BeforeBegin(u32),
    /// An address.
    At(u32),
    /// An offset in the memory of the root that the test watches (`root=` of the command line).
    Root(u32),
    /// An offset from where the hypervisor is in the machine (`hypervisor=`).
    Hypervisor(u32),
    /// An offset from where the memory of another cell is in the machine (`victim=`).
    Victim(u32),
}

/// Bytes of an access to registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// 1.
    Byte,
    /// 2.
    Word,
    /// 4.
    Long,
    /// 8.
    Quad,
}

impl Width {
    /// Bytes.
    pub const fn bytes(self) -> u32 {
        match self {
            Self::Byte => 1,
            Self::Word => 2,
            Self::Long => 4,
            Self::Quad => 8,
        }
    }
}

/// A CPU that an interrupt is meant for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cpu {
    /// The cell's own.
    Own,
    /// CPU 0, which is the root's.
    Root,
    /// The CPU of another cell (`victim-cpu=`).
    Victim,
    /// All.
    All,
}

/// Where a message of an interrupt goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// To a CPU, by its id.
    Physical(Cpu),
    /// To a set of CPUs with this one, which each of them compares with its logical id.
    Logical(Cpu),
    /// In the format with remapping: the entry with this number.
    Entry(u16),
    /// An address.
    At(u64),
}

/// A message of an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Where it goes.
    pub address: Address,
    /// What is written there: vector, delivery mode, trigger.
    pub data: u32,
}

/// A function of the cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    /// QEMU's `edu`: DMA on command, one message.
    Edu,
    /// The network card `e1000e`: a table of messages.
    Card,
}

/// What is attempted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attack {
    /// The device reads memory, and the cell looks at what it got.
    Read(Place),
    /// The device writes memory.
    Write(Place),
    /// The cell gives the function this message, and lets it interrupt.
    Message(Message),
    /// The device writes the data of a message by DMA, to where messages go.
    WriteMessage(Message),
    /// The cell writes to the table of messages: offset, width, value. Then it lets the card interrupt.
    Table(u32, Width, u64),
    /// The cell fills entry 0 of the table of messages, in pieces of this width, and lets the card interrupt.
    Entry(Width, Message),
    /// The cell writes to configuration space, 4 bytes, and reads the bits of the mask back.
    Configure(Function, u16, u32, u32),
    /// The cell writes an address into the function's first base address register, and uses the registers where they were.
    Move(Function, u32),
    /// Nothing: the function was bus master already when the cell began, and this is read of that.
    MasterAtStart(Function),
    /// The device is left to itself, and the test ends the cell.
    Leave(Leave),
}

/// What a device does when its cell ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// It is about to write memory.
    Write,
    /// It is about to read memory.
    Read,
    /// It interrupts.
    Interrupt,
    /// It receives frames.
    Receive,
    /// It reads memory that is not for it, as often as it can.
    Storm,
}
