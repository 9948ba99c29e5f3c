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
use crate::virt::contract::{GuestState, PortAccess, Trapped};
use crate::virt::entry::Frame;
use crate::virt::exit::{SLOW, done};

/// Inside the four ports of configuration mechanism 1's data.
#[inline(always)]
fn is_config_data(access: impl PortAccess) -> bool {
    let byte = u32::from(access.port().wrapping_sub(CONFIG_DATA));
    byte < 4 && byte.wrapping_add(access.size()) <= 4
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
    let access = cpu.guest.port_access();
    if access.is_plain_double_word(CONFIG_ADDRESS) {
        if access.is_input() {
            frame.rax = u64::from(cpu.pci_address);
        } else {
            cpu.pci_address = frame.rax as u32;
        }
        return done(cpu, Trapped::Port);
    }
    if is_config_data(access) && !access.is_string() && config_data(cpu, frame, access) {
        return done(cpu, Trapped::Port);
    }
    SLOW
}

/// An access to a function that no cell has. `false`: one may have it.
#[inline(always)]
fn config_data(cpu: &PerCpu, frame: &mut Frame, access: impl PortAccess) -> bool {
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
fn moderated(cpu: &PerCpu, frame: &mut Frame, access: impl PortAccess) {
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
    let access = cpu.guest.port_access();
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
    if is_config_data(access) {
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

    #[derive(Clone, Copy, Debug)]
    struct Access(u16, u32);

    impl PortAccess for Access {
        fn port(self) -> u16 {
            self.0
        }

        fn size(self) -> u32 {
            self.1
        }

        fn is_input(self) -> bool {
            true
        }

        fn is_string(self) -> bool {
            false
        }

        fn is_plain_double_word(self, port: u16) -> bool {
            self.0 == port && self.1 == 4
        }
    }

    #[test]
    fn only_what_ends_inside_the_four_ports_is_configuration_data() {
        for port in 0..=u16::MAX {
            for size in [1, 2, 4] {
                let last = u32::from(port) + size - 1;
                let expected = port >= 0xcfc && last <= 0xcff;
                assert_eq!(is_config_data(Access(port, size)), expected);
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
