//! ACPI tables, byte by byte (ACPI specification, and Intel's for DMAR).

/// A table with this signature around a body: its header, its length, its checksum.
pub(crate) fn table(signature: &str, revision: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = signature.as_bytes().to_vec();
    let length = u32::try_from(36 + body.len()).unwrap();
    bytes.extend(length.to_le_bytes());
    bytes.extend([revision, 0]);
    bytes.extend(b"GAOL  MADE UP ");
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend(b"GAOL");
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend(body);
    mend_checksum(&mut bytes);
    bytes
}

/// Makes the bytes add up to 0 again.
pub(crate) fn mend_checksum(bytes: &mut [u8]) {
    if bytes.len() > 9 {
        bytes[9] = 0;
        let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        bytes[9] = sum.wrapping_neg();
    }
}

fn joined(parts: &[Vec<u8>]) -> Vec<u8> {
    parts.concat()
}

/// The MADT around its structures.
pub(crate) fn madt(structures: &[Vec<u8>]) -> Vec<u8> {
    let mut body = 0xfee0_0000_u32.to_le_bytes().to_vec();
    body.extend(1_u32.to_le_bytes());
    body.extend(joined(structures));
    table("APIC", 4, &body)
}

pub(crate) fn local_apic(uid: u8, apic_id: u8, enabled: bool) -> Vec<u8> {
    vec![0, 8, uid, apic_id, enabled.into(), 0, 0, 0]
}

pub(crate) fn x2apic(uid: u32, apic_id: u32, enabled: bool) -> Vec<u8> {
    let mut bytes = vec![9, 16, 0, 0];
    bytes.extend(apic_id.to_le_bytes());
    bytes.extend([enabled.into(), 0, 0, 0]);
    bytes.extend(uid.to_le_bytes());
    bytes
}

pub(crate) fn io_apic(id: u8, address: u32, gsi_base: u32) -> Vec<u8> {
    let mut bytes = vec![1, 12, id, 0];
    bytes.extend(address.to_le_bytes());
    bytes.extend(gsi_base.to_le_bytes());
    bytes
}

pub(crate) fn interrupt_override(source: u8, gsi: u32, flags: u16) -> Vec<u8> {
    let mut bytes = vec![2, 10, 0, source];
    bytes.extend(gsi.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

pub(crate) fn nmi_source(flags: u16, gsi: u32) -> Vec<u8> {
    let mut bytes = vec![3, 8];
    bytes.extend(flags.to_le_bytes());
    bytes.extend(gsi.to_le_bytes());
    bytes
}

pub(crate) fn local_nmi(uid: u8, flags: u16, lint: u8) -> Vec<u8> {
    let [low, high] = flags.to_le_bytes();
    vec![4, 6, uid, low, high, lint]
}

pub(crate) fn local_apic_address(address: u64) -> Vec<u8> {
    let mut bytes = vec![5, 12, 0, 0];
    bytes.extend(address.to_le_bytes());
    bytes
}

pub(crate) fn x2apic_nmi(uid: u32, flags: u16, lint: u8) -> Vec<u8> {
    let mut bytes = vec![10, 12];
    bytes.extend(flags.to_le_bytes());
    bytes.extend(uid.to_le_bytes());
    bytes.extend([lint, 0, 0, 0]);
    bytes
}

/// The MCFG: base, segment, first and last bus of each region.
pub(crate) fn mcfg(regions: &[(u64, u16, u8, u8)]) -> Vec<u8> {
    let mut body = vec![0; 8];
    for (base, segment, first, last) in regions {
        body.extend(base.to_le_bytes());
        body.extend(segment.to_le_bytes());
        body.extend([*first, *last, 0, 0, 0, 0]);
    }
    table("MCFG", 1, &body)
}

/// The DMAR around its structures.
pub(crate) fn dmar(address_bits: u8, flags: u8, structures: &[Vec<u8>]) -> Vec<u8> {
    let mut body = vec![address_bits - 1, flags];
    body.extend([0; 10]);
    body.extend(joined(structures));
    table("DMAR", 1, &body)
}

fn structure(kind: u16, content: &[u8]) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    let length = u16::try_from(4 + content.len()).unwrap();
    bytes.extend(length.to_le_bytes());
    bytes.extend(content);
    bytes
}

/// A device scope: kind, enumeration id, start bus, path.
pub(crate) fn scope(kind: u8, id: u8, bus: u8, path: &[(u8, u8)]) -> Vec<u8> {
    let length = u8::try_from(6 + 2 * path.len()).unwrap();
    let mut bytes = vec![kind, length, 0, 0, id, bus];
    for (device, function) in path {
        bytes.extend([*device, *function]);
    }
    bytes
}

/// A remapping unit; its registers take 2^`size` pages.
pub(crate) fn drhd(all: bool, size: u8, segment: u16, address: u64, scopes: &[Vec<u8>]) -> Vec<u8> {
    let mut content = vec![all.into(), size];
    content.extend(segment.to_le_bytes());
    content.extend(address.to_le_bytes());
    content.extend(joined(scopes));
    structure(0, &content)
}

pub(crate) fn rmrr(segment: u16, base: u64, limit: u64, scopes: &[Vec<u8>]) -> Vec<u8> {
    let mut content = vec![0, 0];
    content.extend(segment.to_le_bytes());
    content.extend(base.to_le_bytes());
    content.extend(limit.to_le_bytes());
    content.extend(joined(scopes));
    structure(1, &content)
}

pub(crate) fn atsr(all: bool, segment: u16, scopes: &[Vec<u8>]) -> Vec<u8> {
    let mut content = vec![all.into(), 0];
    content.extend(segment.to_le_bytes());
    content.extend(joined(scopes));
    structure(2, &content)
}

pub(crate) fn rhsa(address: u64, domain: u32) -> Vec<u8> {
    let mut content = vec![0; 4];
    content.extend(address.to_le_bytes());
    content.extend(domain.to_le_bytes());
    structure(3, &content)
}

pub(crate) fn andd(number: u8, name: &str) -> Vec<u8> {
    let mut content = vec![0, 0, 0, number];
    content.extend(name.as_bytes());
    content.push(0);
    structure(4, &content)
}

/// A FADT of `length` bytes with the registers of an Intel chipset from port `base` on.
pub(crate) fn fadt(length: usize, base: u16) -> Vec<u8> {
    let mut body = vec![0; length - 36];
    let mut put = |offset: usize, bytes: &[u8]| {
        if let Some(place) = body.get_mut(offset - 36..offset - 36 + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    let port = |offset: u16| u32::from(base + offset).to_le_bytes();
    put(46, &9_u16.to_le_bytes());
    put(48, &0xb2_u32.to_le_bytes());
    put(56, &port(0));
    put(64, &port(4));
    put(76, &port(8));
    put(80, &port(0x20));
    put(88, &[4, 2, 1, 4, 16]);
    put(108, &[0x32]);
    // The timer has 32 bits, and there is a reset register.
    put(112, &(1_u32 << 8 | 1 << 10).to_le_bytes());
    put(116, &generic(1, 8, 0xcf9));
    put(128, &[6]);
    put(148, &generic(1, 32, (base).into()));
    put(172, &generic(1, 16, u64::from(base) + 4));
    put(208, &generic(1, 32, u64::from(base) + 8));
    table("FACP", 4, &body)
}

/// ACPI specification, "Generic Address Structure".
pub(crate) fn generic(space: u8, bits: u8, address: u64) -> Vec<u8> {
    let mut bytes = vec![space, bits, 0, 0];
    bytes.extend(address.to_le_bytes());
    bytes
}
