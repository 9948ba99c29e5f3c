//! PCI functions as people name them: by address and by the ids of vendor and device.
//!
//! Invariant: what is shown is read back as the same function, and nothing else is read.

use core::fmt;

use gaol_abi::config::{AssignedDevice, MachineDevice};

/// Where a PCI function is, in the form of the binary configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FunctionAddress {
    /// Segment group.
    pub segment: u16,
    /// Bus << 8 | device << 3 | function.
    pub function: u16,
}

impl FunctionAddress {
    /// Reads `"0000:00:03.0"`, or `"00:03.0"` for segment 0; all digits are hexadecimal.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (segment, rest) = match text.split(':').count() {
            3 => text.split_once(':')?,
            _ => ("0000", text),
        };
        let (bus, rest) = rest.split_once(':')?;
        let (device, function) = rest.split_once('.')?;
        let (device, function) = (digits(device, 2)?, digits(function, 1)?);
        if device >= 32 || function >= 8 {
            return None;
        }
        Some(Self {
            segment: digits(segment, 4)?,
            function: digits(bus, 2)? << 8 | device << 3 | function,
        })
    }

    /// As [`gaol_abi::outcome::Reason`]s give it: segment << 16 | function.
    #[must_use]
    pub fn from_detail(detail: u64) -> Self {
        Self {
            segment: (detail >> 16) as u16,
            function: detail as u16,
        }
    }
}

impl fmt::Display for FunctionAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bus, device) = (self.function >> 8, self.function >> 3 & 31);
        let function = self.function & 7;
        write!(
            formatter,
            "{:04x}:{bus:02x}:{device:02x}.{function}",
            self.segment
        )
    }
}

impl From<&MachineDevice> for FunctionAddress {
    fn from(device: &MachineDevice) -> Self {
        Self {
            segment: device.segment,
            function: device.function,
        }
    }
}

impl From<&AssignedDevice> for FunctionAddress {
    fn from(device: &AssignedDevice) -> Self {
        Self {
            segment: device.segment,
            function: device.function,
        }
    }
}

/// Who made a PCI function, and what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FunctionId {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
}

impl FunctionId {
    /// Reads `"8086:100e"`; all digits are hexadecimal.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (vendor, device) = text.split_once(':')?;
        Some(Self {
            vendor: digits(vendor, 4)?,
            device: digits(device, 4)?,
        })
    }
}

impl fmt::Display for FunctionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:04x}:{:04x}", self.vendor, self.device)
    }
}

impl From<&MachineDevice> for FunctionId {
    fn from(device: &MachineDevice) -> Self {
        Self {
            vendor: device.vendor,
            device: device.device,
        }
    }
}

/// Exactly `count` hexadecimal digits.
fn digits(text: &str, count: usize) -> Option<u16> {
    let is_number = text.len() == count && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_number.then(|| u16::from_str_radix(text, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn addresses_are_read_with_and_without_a_segment() {
        let address = |segment, function| Some(FunctionAddress { segment, function });
        assert_eq!(FunctionAddress::parse("0000:00:03.0"), address(0, 0x18));
        assert_eq!(FunctionAddress::parse("00:03.0"), address(0, 0x18));
        assert_eq!(FunctionAddress::parse("0001:fF:1f.7"), address(1, 0xffff));
        for text in [
            "",
            "00:03",
            "00:03.8",
            "00:20.0",
            "0:3.0",
            "00:03.0 ",
            "00:+3.0",
            "00000:00:03.0",
            "0:0000:00:03.0",
            "00:03:0",
            "0000:00:03.00",
        ] {
            assert_eq!(FunctionAddress::parse(text), None, "{text}");
        }
    }

    #[test]
    fn ids_are_read() {
        let id = FunctionId {
            vendor: 0x8086,
            device: 0x100e,
        };
        assert_eq!(FunctionId::parse("8086:100E"), Some(id));
        for text in [
            "",
            "8086",
            "8086:",
            "8086:100",
            "8086:100e:0",
            "0x8086:100e",
        ] {
            assert_eq!(FunctionId::parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(segment: u16, function: u16, vendor: u16, device: u16) {
            let address = FunctionAddress { segment, function };
            prop_assert_eq!(FunctionAddress::parse(&address.to_string()), Some(address));
            let detail = u64::from(segment) << 16 | u64::from(function);
            prop_assert_eq!(FunctionAddress::from_detail(detail), address);
            let id = FunctionId { vendor, device };
            prop_assert_eq!(FunctionId::parse(&id.to_string()), Some(id));
        }

        #[test]
        fn no_text_makes_the_readers_panic(text in "\\PC{0,14}") {
            let _ = (FunctionAddress::parse(&text), FunctionId::parse(&text));
        }
    }
}
