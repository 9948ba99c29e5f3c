//! Classes of PCI functions in words.
//!
//! PCI Code and ID Assignment specification, "Class Codes".

/// Base class and subclass, and what such functions are called.
const SUBCLASSES: [(u8, u8, &str); 52] = [
    (0x00, 0x01, "VGA-compatible device"),
    (0x01, 0x00, "SCSI controller"),
    (0x01, 0x01, "IDE controller"),
    (0x01, 0x04, "RAID controller"),
    (0x01, 0x06, "SATA controller"),
    (0x01, 0x07, "SAS controller"),
    (0x01, 0x08, "NVMe controller"),
    (0x02, 0x00, "Ethernet controller"),
    (0x02, 0x07, "InfiniBand controller"),
    (0x02, 0x80, "network controller"),
    (0x03, 0x00, "VGA controller"),
    (0x03, 0x02, "3D controller"),
    (0x03, 0x80, "display controller"),
    (0x04, 0x01, "audio controller"),
    (0x04, 0x03, "HD audio controller"),
    (0x05, 0x00, "RAM"),
    (0x05, 0x01, "flash memory"),
    (0x05, 0x80, "memory controller"),
    (0x06, 0x00, "host bridge"),
    (0x06, 0x01, "ISA bridge"),
    (0x06, 0x04, "PCI bridge"),
    (0x06, 0x07, "CardBus bridge"),
    (0x06, 0x80, "bridge"),
    (0x07, 0x00, "serial controller"),
    (0x07, 0x01, "parallel controller"),
    (0x07, 0x02, "multiport serial controller"),
    (0x07, 0x80, "communication controller"),
    (0x08, 0x00, "interrupt controller"),
    (0x08, 0x01, "DMA controller"),
    (0x08, 0x02, "timer"),
    (0x08, 0x03, "real-time clock"),
    (0x08, 0x05, "SD host controller"),
    (0x08, 0x06, "IOMMU"),
    (0x08, 0x07, "event collector of the root complex"),
    (0x08, 0x80, "system device"),
    (0x09, 0x00, "keyboard controller"),
    (0x09, 0x02, "mouse controller"),
    (0x0b, 0x40, "coprocessor"),
    (0x0c, 0x00, "FireWire controller"),
    (0x0c, 0x03, "USB controller"),
    (0x0c, 0x04, "Fibre Channel controller"),
    (0x0c, 0x05, "SMBus controller"),
    (0x0c, 0x07, "IPMI interface"),
    (0x0c, 0x09, "CAN controller"),
    (0x0d, 0x11, "Bluetooth controller"),
    (0x0d, 0x80, "wireless controller"),
    (0x0f, 0x00, "satellite TV controller"),
    (0x10, 0x00, "network encryption controller"),
    (0x10, 0x80, "encryption controller"),
    (0x11, 0x01, "performance counters"),
    (0x11, 0x80, "signal processing controller"),
    (0x12, 0x00, "processing accelerator"),
];

/// Base classes, for subclasses that have no name above.
const CLASSES: [(u8, &str); 19] = [
    (0x01, "storage controller"),
    (0x02, "network controller"),
    (0x03, "display controller"),
    (0x04, "multimedia controller"),
    (0x05, "memory controller"),
    (0x06, "bridge"),
    (0x07, "communication controller"),
    (0x08, "system device"),
    (0x09, "input device"),
    (0x0a, "docking station"),
    (0x0b, "processor"),
    (0x0c, "serial bus controller"),
    (0x0d, "wireless controller"),
    (0x0e, "intelligent controller"),
    (0x0f, "satellite communication controller"),
    (0x10, "encryption controller"),
    (0x11, "signal processing controller"),
    (0x12, "processing accelerator"),
    (0x13, "non-essential instrumentation"),
];

/// What a function with this class code (base class, subclass, interface) is called.
#[must_use]
pub fn class_name(class: u32) -> String {
    let [_, base, sub, _] = class.to_be_bytes();
    let of_subclass = SUBCLASSES
        .iter()
        .find(|(b, s, _)| (*b, *s) == (base, sub))
        .map(|(_, _, name)| *name);
    let of_class = || {
        CLASSES
            .iter()
            .find(|(b, _)| *b == base)
            .map(|(_, name)| *name)
    };
    match of_subclass.or_else(of_class) {
        Some(name) => name.to_owned(),
        None => format!("device of class {base:02x}{sub:02x}"),
    }
}

/// Whether a function is a bridge of any kind (base class 6), which holds the machine together.
pub(super) fn is_bridge(class: u32) -> bool {
    class.to_be_bytes()[1] == 0x06
}

/// Whether a base address register is one of an IDE channel at the ports of old (PCI IDE Controller specification): the
/// register itself is not there, and Linux shows those ports in its place.
pub(super) fn is_legacy_ide(class: u32, bar: u8) -> bool {
    let [_, base, sub, interface] = class.to_be_bytes();
    let is_native = match bar {
        0 | 1 => interface & 1 != 0,
        2 | 3 => interface & 4 != 0,
        _ => true,
    };
    (base, sub) == (0x01, 0x01) && !is_native
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_have_names() {
        assert_eq!(class_name(0x02_0000), "Ethernet controller");
        assert_eq!(class_name(0x02_9900), "network controller");
        assert_eq!(class_name(0xff_0000), "device of class ff00");
        assert!(is_bridge(0x06_0100) && !is_bridge(0x02_0000));
        assert!(is_legacy_ide(0x01_0180, 0) && is_legacy_ide(0x01_0180, 3));
        assert!(!is_legacy_ide(0x01_0180, 4) && !is_legacy_ide(0x01_0185, 0));
        assert!(!is_legacy_ide(0x01_0601, 0));
    }
}
