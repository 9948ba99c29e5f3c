//! Interrupt lines that Linux has in use, as `/proc/interrupts` tells.
#![forbid(unsafe_code)]

/// Who in Linux uses an interrupt line (a global system interrupt), by the text of `/proc/interrupts`; `None` when nobody
/// is known to.
///
/// The file has a line for each interrupt: Linux' number of it, a count for each CPU, the name of the chip, the pin with the
/// trigger mode, and who has asked for it. On the first IOAPIC the pin is the line's number. What is behind others is not
/// told; the hypervisor looks whether a line is masked.
#[must_use]
pub fn user(text: &str, line: u32) -> Option<&str> {
    text.lines().find_map(|row| {
        let (number, rest) = row.split_once(':')?;
        let number: u32 = number.trim().parse().ok()?;
        let (_, behind) = rest.split_once("IO-APIC")?;
        let (pin, users) = behind.trim_start().split_once(char::is_whitespace)?;
        let (pin, _) = pin.split_once('-')?;
        let pin: u32 = pin.parse().ok()?;
        let is_legacy = number < 16;
        let users = users.trim();
        ((is_legacy || number == pin) && pin == line && !users.is_empty()).then_some(users)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
           CPU0       CPU1       CPU2       CPU3
  0:         28          0          0          0   IO-APIC   2-edge      timer
  1:          0          9          0          0   IO-APIC   1-edge      i8042
  4:          0          0        412          0   IO-APIC   4-edge      ttyS0
  8:          0          0          0          1  IR-IO-APIC   8-edge      rtc0
  9:          0          0          0          0   IO-APIC   9-fasteoi   acpi
 11:          0          0          0          0   IO-APIC  11-edge
 16:          0          3          0          0   IO-APIC  16-fasteoi   ehci_hcd:usb1, i801_smbus
 24:          0          0          0          0   PCI-MSI 65536-edge      aerdrv
 34:          0          0          0          0   IO-APIC   3-fasteoi   ioat-msi
NMI:          0          0          0          0   Non-maskable interrupts
";

    #[test]
    fn lines_of_drivers_are_known() {
        let used: Vec<(u32, &str)> = (0..80)
            .filter_map(|line| Some((line, user(TEXT, line)?)))
            .collect();
        assert_eq!(
            used,
            [
                (1, "i8042"),
                (2, "timer"),
                (4, "ttyS0"),
                (8, "rtc0"),
                (9, "acpi"),
                (16, "ehci_hcd:usb1, i801_smbus"),
            ]
        );
    }

    #[test]
    fn other_text_says_nothing() {
        for text in [
            "",
            "garbage",
            "1: IO-APIC",
            "1: 2 IO-APIC x-edge y",
            "5: IO-APIC 5 z",
        ] {
            assert!((0..32).all(|line| user(text, line).is_none()), "{text}");
        }
    }
}
