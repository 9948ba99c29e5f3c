//! I/O ports that the bitmap does not let through: PCI configuration mechanism 1 and what is not the guest's.
//!
//! Port 0xcf8 is shadowed for each CPU, and an access to 0xcfc sets the real one under a lock that is held for the two
//! instructions, so no CPU's address register is ever seen by another.

use gaol_abi::exit::COUNTER_ROOT_VIOLATIONS;

use super::{Verdict, pci, root_failure};
use crate::cpu::PerCpu;
use crate::device::pci::assigned;
use crate::device::pci::hardware::{
    ADDRESS_LOCK, CONFIG_ADDRESS, CONFIG_DATA, CONFIG_ENABLE, root_access,
};
use crate::launch::parameters;
use crate::processor::{port_read, port_write};
use crate::virt::vmx::entry::Frame;
use crate::virt::vmx::exit::{SLOW, done};
use crate::virt::vmx::fields::Field;
use crate::virt::vmx::instructions::read;

/// Exit qualification of an I/O instruction.
#[derive(Clone, Copy, Debug)]
struct Access(u64);

impl Access {
    const fn port(self) -> u16 {
        (self.0 >> 16) as u16
    }

    const fn size(self) -> u32 {
        ((self.0 & 7) as u32).wrapping_add(1)
    }

    /// Inside the four ports of configuration mechanism 1's data.
    const fn is_config_data(self) -> bool {
        let byte = self.port().wrapping_sub(CONFIG_DATA) as u32;
        byte < 4 && byte.wrapping_add(self.size()) <= 4
    }

    const fn is_input(self) -> bool {
        self.0 & (1 << 3) != 0
    }

    const fn is_string(self) -> bool {
        self.0 & (1 << 4) != 0
    }
}

/// Puts what was read into AL, AX or EAX.
#[inline(always)]
fn put(frame: &mut Frame, size: u32, value: u32) {
    frame.rax = match size {
        1 => (frame.rax & !0xff) | u64::from(value & 0xff),
        2 => (frame.rax & !0xffff) | u64::from(value & 0xffff),
        _ => u64::from(value),
    };
}

/// The two ports of PCI configuration.
#[inline(never)]
pub extern "sysv64" fn fast(cpu: &mut PerCpu, frame: &mut Frame) -> u32 {
    let access = Access(read(Field::ExitQualification));
    // Bits 5:0 and 31:16: a plain 4-byte access to 0xcf8.
    let shape = access.0 & 0xffff_0037;
    if shape == (u64::from(CONFIG_ADDRESS) << 16) | 3 {
        if access.is_input() {
            frame.rax = u64::from(cpu.pci_address);
        } else {
            cpu.pci_address = frame.rax as u32;
        }
        return done(cpu);
    }
    if access.is_config_data() && !access.is_string() && config_data(cpu, frame, access) {
        return done(cpu);
    }
    SLOW
}

/// An access to a function that no cell has. `false`: one may have it.
#[inline(always)]
fn config_data(cpu: &PerCpu, frame: &mut Frame, access: Access) -> bool {
    let address = cpu.pci_address;
    let function = (address >> 8) as u16;
    if !cpu.is_root || address & CONFIG_ENABLE == 0 {
        if !cpu.is_root && assigned::may_be_assigned(function) {
            return false;
        }
        if access.is_input() {
            put(frame, access.size(), u32::MAX);
        }
        return true;
    }
    let guard = ADDRESS_LOCK.lock();
    // Looked at with the lock held: who takes a function from the root takes the lock afterwards.
    if assigned::may_be_assigned(function) {
        return false;
    }
    // SAFETY: a configuration access to a function of the guest's own, as on bare hardware; the lock keeps address and data
    // together.
    let value = unsafe {
        port_write(CONFIG_ADDRESS, 4, address);
        if access.is_input() {
            port_read(access.port(), access.size())
        } else {
            port_write(access.port(), access.size(), frame.rax as u32);
            0
        }
    };
    drop(guard);
    if access.is_input() {
        put(frame, access.size(), value);
    }
    true
}

/// An access to configuration space where a cell may have the function.
fn moderated(cpu: &PerCpu, frame: &mut Frame, access: Access) {
    let value = (!access.is_input()).then_some(frame.rax as u32);
    let (port, width) = (access.port(), access.size());
    let found = if cpu.is_root {
        root_access(cpu.pci_address, port, width, value).unwrap_or_else(|| {
            cpu.counters.count(COUNTER_ROOT_VIOLATIONS);
            u32::MAX
        })
    } else {
        pci::cell_access(cpu, port & 3, width, value)
    };
    if access.is_input() {
        put(frame, access.size(), found);
    }
}

/// Any other port.
pub fn slow(cpu: &mut PerCpu, frame: &mut Frame) -> Verdict {
    let access = Access(read(Field::ExitQualification));
    let port = access.port();
    if access.is_string() {
        // A repeated access is skipped as a whole: what it would have moved is not the guest's.
        return if cpu.is_root || cpu.ignore_ports {
            Verdict::Advance
        } else {
            Verdict::Violation {
                address: u64::from(port),
            }
        };
    }
    if access.is_config_data() {
        moderated(cpu, frame, access);
        return Verdict::Advance;
    }
    // Narrow accesses to 0xcf8…0xcfb are other registers of the chipset, the reset control at 0xcf9 among them. What goes
    // beyond would reach the data of whatever function was addressed last.
    let end = u32::from(port).wrapping_add(access.size());
    let is_narrow = port >= CONFIG_ADDRESS && end <= u32::from(CONFIG_DATA);
    let is_beside = port >= CONFIG_DATA.wrapping_add(4) || end <= u32::from(CONFIG_ADDRESS);
    let is_watched = is_beside && root_failure::covers(port, access.size());
    if cpu.is_root && (is_narrow || is_watched) {
        let value = frame.rax as u32;
        if !access.is_input()
            && let Some(verdict) = root_failure::write_port(cpu, frame, port, access.size(), value)
        {
            return verdict;
        }
        // SAFETY: the root's own port.
        unsafe {
            if access.is_input() {
                let value = port_read(port, access.size());
                put(frame, access.size(), value);
            } else {
                port_write(port, access.size(), frame.rax as u32);
            }
        }
        return Verdict::Advance;
    }
    let timer = parameters::pm_timer_port();
    if timer != 0 && u32::from(port) == timer && access.is_input() && access.size() == 4 {
        // SAFETY: reading the power management timer has no effect.
        let value = unsafe { port_read(port, 4) };
        put(frame, 4, value);
        return Verdict::Advance;
    }
    if cpu.is_root {
        cpu.counters.count(COUNTER_ROOT_VIOLATIONS);
    } else if !cpu.ignore_ports && port & !7 != CONFIG_ADDRESS {
        return Verdict::Violation {
            address: u64::from(port),
        };
    }
    if access.is_input() {
        put(frame, access.size(), u32::MAX);
    }
    Verdict::Advance
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// SDM, "Exit Qualification for I/O Instructions".
    fn qualification(port: u16, size: u32, input: bool, others: u64) -> Access {
        Access(u64::from(port) << 16 | u64::from(size - 1) | u64::from(input) << 3 | others)
    }

    #[test]
    fn every_access_to_every_port_is_decoded() {
        let (string, repeated, immediate) = (1 << 4, 1 << 5, 1 << 6);
        for port in 0..=u16::MAX {
            for size in [1, 2, 4] {
                for input in [false, true] {
                    for others in [0, immediate, string, string | repeated] {
                        let access = qualification(port, size, input, others);
                        assert_eq!(access.port(), port);
                        assert_eq!(access.size(), size);
                        assert_eq!(access.is_input(), input);
                        assert_eq!(access.is_string(), others & string != 0);
                        let last = u32::from(port) + size - 1;
                        let is_data = port >= 0xcfc && last <= 0xcff;
                        assert_eq!(access.is_config_data(), is_data);
                    }
                }
            }
        }
    }

    proptest! {
        /// Only 32-bit results clear the upper half of a register.
        #[test]
        fn what_is_read_changes_no_more_than_its_size(rax: u64, rcx: u64, value: u32) {
            for (size, expected) in [
                (1, rax & 0xffff_ffff_ffff_ff00 | u64::from(value as u8)),
                (2, rax & 0xffff_ffff_ffff_0000 | u64::from(value as u16)),
                (4, u64::from(value)),
            ] {
                let mut frame = Frame { rax, rcx, ..Frame::default() };
                put(&mut frame, size, value);
                prop_assert_eq!(frame.rax, expected);
                prop_assert_eq!(frame.rcx, rcx);
            }
        }
    }
}
