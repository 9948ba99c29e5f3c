//! Which writes to I/O ports reset a PC, or put it to sleep: plain logic.
//!
//! The ports are those of the PC's chipsets since the AT (keyboard controller, port 92, reset control register), and
//! those that the FADT names (ACPI specification, "Fixed ACPI Description Table (FADT)", "PM1 Control Registers").
#![forbid(unsafe_code)]

use gaol_abi::public::RootFailureKind;

/// Data of the keyboard controller.
const KEYBOARD_DATA: u16 = 0x60;
/// Command register of the keyboard controller.
const KEYBOARD_COMMAND: u16 = 0x64;
/// System control port A.
const SYSTEM_CONTROL: u16 = 0x92;
/// Reset control register of the chipset.
const RESET_CONTROL: u16 = 0xcf9;

/// Command of the keyboard controller: the next byte of data goes to its output port, whose bit 0 is the reset line.
const WRITE_OUTPUT_PORT: u8 = 0xd1;
/// Bit of the high byte of a PM1 control register that starts the transition to a sleeping state (SLP_EN).
const SLEEP_ENABLE: u8 = 1 << 5;

/// The registers of a machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResetRegisters {
    /// Port of the FADT's reset register, and the value that resets.
    pub reset: Option<(u16, u8)>,
    /// First of the two ports of each PM1 control register.
    pub power_control: [Option<u16>; 2],
}

impl ResetRegisters {
    /// The ports of the registers. `RESET_CONTROL` is among the ports of PCI configuration, which are moderated anyway.
    pub fn ports(&self) -> impl Iterator<Item = u16> {
        let power_control = self.power_control.into_iter().flatten();
        [
            KEYBOARD_DATA,
            KEYBOARD_COMMAND,
            SYSTEM_CONTROL,
            RESET_CONTROL,
        ]
        .into_iter()
        .chain(self.reset.map(|(port, _)| port))
        .chain(power_control.flat_map(|first| [first, first.wrapping_add(1)]))
    }

    /// Whether a port is one of them.
    #[must_use]
    pub fn has(&self, port: u16) -> bool {
        self.ports().any(|known| known == port)
    }

    /// Byte of a PM1 control register, 0 or 1.
    fn has_power_control(&self, port: u16) -> Option<u16> {
        let registers = self.power_control.iter().flatten();
        registers
            .map(|first| port.wrapping_sub(*first))
            .find(|byte| *byte < 2)
    }

    /// Whether all bytes of an access are among them.
    #[must_use]
    pub fn cover(&self, port: u16, size: u32) -> bool {
        (0..size as u16).all(|byte| self.has(port.wrapping_add(byte)))
    }

    /// What the write does to the machine. `output_port`: data for the keyboard controller's output port is expected; it
    /// becomes what is so behind the write.
    #[must_use]
    pub fn effect(
        &self,
        port: u16,
        size: u32,
        value: u32,
        output_port: &mut bool,
    ) -> Option<RootFailureKind> {
        let mut effect = None;
        let bytes = value.to_le_bytes();
        for (index, byte) in (0u16..).zip(bytes).take(size as usize) {
            let port = port.wrapping_add(index);
            effect = effect.or(self.effect_of_byte(port, byte, *output_port));
            match port {
                KEYBOARD_COMMAND => *output_port = byte == WRITE_OUTPUT_PORT,
                KEYBOARD_DATA => *output_port = false,
                _ => {}
            }
        }
        effect
    }

    fn effect_of_byte(&self, port: u16, byte: u8, output_port: bool) -> Option<RootFailureKind> {
        let resets = match port {
            // Pulses those lines of the output port whose bit is 0.
            KEYBOARD_COMMAND => byte & 0xf1 == 0xf0,
            KEYBOARD_DATA => output_port && byte & 1 == 0,
            SYSTEM_CONTROL => byte & 1 != 0,
            RESET_CONTROL => byte & (1 << 2) != 0,
            _ => false,
        };
        if resets || self.reset == Some((port, byte)) {
            return Some(RootFailureKind::Reset);
        }
        let sleeps = self.has_power_control(port) == Some(1) && byte & SLEEP_ENABLE != 0;
        sleeps.then_some(RootFailureKind::Sleep)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PC: ResetRegisters = ResetRegisters {
        reset: Some((0xb2, 0x73)),
        power_control: [Some(0xb004), None],
    };

    fn effect(port: u16, size: u32, value: u32) -> Option<RootFailureKind> {
        PC.effect(port, size, value, &mut false)
    }

    #[test]
    fn every_byte_at_every_port_has_the_effect_that_the_manuals_say() {
        for port in 0..=u16::MAX {
            let guarded = matches!(port, 0x60 | 0x64 | 0x92 | 0xcf9 | 0xb2 | 0xb004 | 0xb005);
            assert_eq!(PC.has(port), guarded, "{port:#x}");
            for byte in 0..=255u8 {
                let expected = match (port, byte) {
                    (0x64, 0xf0 | 0xf2 | 0xf4 | 0xf6 | 0xf8 | 0xfa | 0xfc | 0xfe)
                    | (0xb2, 0x73) => Some(RootFailureKind::Reset),
                    (0x92, _) if byte & 1 != 0 => Some(RootFailureKind::Reset),
                    (0xcf9, _) if byte & 4 != 0 => Some(RootFailureKind::Reset),
                    (0xb005, _) if byte & 0x20 != 0 => Some(RootFailureKind::Sleep),
                    _ => None,
                };
                assert_eq!(
                    effect(port, 1, byte.into()),
                    expected,
                    "{port:#x} {byte:#x}"
                );
                assert!(guarded || expected.is_none());
            }
        }
    }

    #[test]
    fn wide_accesses_are_their_bytes() {
        assert_eq!(effect(0xcf8, 2, 0x0600), Some(RootFailureKind::Reset));
        assert_eq!(effect(0xcf8, 2, 0x0006), None);
        assert_eq!(effect(0xb004, 2, 0x3c00), Some(RootFailureKind::Sleep));
        assert_eq!(effect(0xb004, 2, 0x1c01), None);
        assert_eq!(effect(0xcf7, 4, 0xff04_ffff), Some(RootFailureKind::Reset));
        assert!(PC.cover(0xb004, 2) && !PC.cover(0xb004, 4) && !PC.cover(0x63, 2));
    }

    #[test]
    fn the_output_port_is_written_in_two_steps() {
        let mut output_port = false;
        assert_eq!(PC.effect(0x60, 1, 0xfe, &mut output_port), None);
        assert_eq!(PC.effect(0x64, 1, 0xd1, &mut output_port), None);
        assert!(output_port);
        assert_eq!(PC.effect(0x60, 1, 0xdf, &mut output_port), None);
        assert!(!output_port);
        assert_eq!(PC.effect(0x64, 1, 0xd1, &mut output_port), None);
        let reset = PC.effect(0x60, 1, 0xde, &mut output_port);
        assert_eq!(reset, Some(RootFailureKind::Reset));
        assert_eq!(PC.effect(0x64, 1, 0xd1, &mut output_port), None);
        assert_eq!(PC.effect(0x64, 1, 0x20, &mut output_port), None);
        assert_eq!(PC.effect(0x60, 1, 0xde, &mut output_port), None);
    }

    #[test]
    fn a_machine_without_acpi_has_the_old_ports_only() {
        let old = ResetRegisters::default();
        let count = (0..=u16::MAX).filter(|port| old.has(*port)).count();
        assert_eq!(count, 4);
        // So the ledger knows them, and no cell has them.
        let known = gaol_config::ledger::RESET_PORTS;
        assert!(known.into_iter().all(|range| old.has(range.first)));
    }
}
