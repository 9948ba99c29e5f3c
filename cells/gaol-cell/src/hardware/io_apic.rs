//! The machine's first IOAPIC, as the hypervisor shows it to a cell that has interrupt lines: its own pins, and the others
//! masked.
//!
//! Each access is a VM exit; an interrupt is none.

/// Where it is.
const BASE: u64 = 0xfec0_0000;
const DATA: u64 = 0x10;
const FIRST_ENTRY: u8 = 0x10;

/// An entry that sends nothing.
pub const MASKED: u64 = 1 << 16;
/// Bit of an entry: level-triggered.
pub const LEVEL: u64 = 1 << 15;

/// An entry that sends interrupts of this vector to the CPU with this APIC id, at each edge.
pub const fn entry(vector: u8, apic_id: u32) -> u64 {
    (apic_id as u64) << 56 | vector as u64
}

/// Reads a register.
pub fn read(register: u8) -> u32 {
    // SAFETY: The addresses are mapped one to one, and the registers change no memory.
    unsafe {
        (BASE as *mut u32).write_volatile(register.into());
        ((BASE + DATA) as *const u32).read_volatile()
    }
}

/// Writes a register.
pub fn write(register: u8, value: u32) {
    // SAFETY: As in `read`; interrupts of every vector have an entry in the table.
    unsafe {
        (BASE as *mut u32).write_volatile(register.into());
        ((BASE + DATA) as *mut u32).write_volatile(value);
    }
}

/// The entry of a pin.
pub fn entry_of(pin: u8) -> u64 {
    let low = FIRST_ENTRY + 2 * pin;
    u64::from(read(low + 1)) << 32 | u64::from(read(low))
}

/// Sets the entry of a pin.
pub fn set_entry(pin: u8, entry: u64) {
    let low = FIRST_ENTRY + 2 * pin;
    write(low, MASKED as u32);
    write(low + 1, (entry >> 32) as u32);
    write(low, entry as u32);
}
