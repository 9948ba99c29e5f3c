//! Memory types of physical addresses, as the machine's MTRRs give them.
#![forbid(unsafe_code)]

use open_enum::open_enum;

use super::address::{HostPhysical, PHYSICAL_BITS};

/// How memory is cached, in the numbers that MTRRs, PAT and EPT share: SDM, "Memory Types That Can Be Encoded in MTRRs".
#[open_enum]
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryType {
    /// UC: no caching, no speculation.
    Uncacheable = 0,
    /// WC: writes are collected.
    WriteCombining = 1,
    /// WT: reads are cached, writes go through.
    WriteThrough = 4,
    /// WP: reads are cached, writes go to memory and invalidate.
    WriteProtected = 5,
    /// WB: ordinary memory.
    WriteBack = 6,
}

impl MemoryType {
    const fn is_known(self) -> bool {
        matches!(self.0, 0 | 1 | 4 | 5 | 6)
    }
}

/// Number of fixed-range MTRRs.
pub const FIXED_REGISTERS: usize = 11;
/// The most variable-range MTRRs that are taken.
pub const MAX_VARIABLE: usize = 32;

/// The first address behind those of the fixed-range MTRRs.
const FIXED_END: u64 = 1 << 20;
const CAP_FIXED: u64 = 1 << 8;
const DEF_TYPE_FIXED_ENABLE: u64 = 1 << 10;
const DEF_TYPE_ENABLE: u64 = 1 << 11;
const MASK_VALID: u64 = 1 << 11;

/// The values of the MTRRs.
#[derive(Clone, Copy, Debug)]
pub struct Mtrrs<'a> {
    /// IA32_MTRRCAP.
    pub capabilities: u64,
    /// IA32_MTRR_DEF_TYPE.
    pub default_type: u64,
    /// IA32_MTRR_FIX64K_00000, FIX16K_80000, FIX16K_A0000, FIX4K_C0000 to FIX4K_F8000.
    pub fixed: [u64; FIXED_REGISTERS],
    /// Pairs of IA32_MTRR_PHYSBASE and IA32_MTRR_PHYSMASK.
    pub variable: &'a [(u64, u64)],
    /// Bits of a physical address (CPUID 0x80000008).
    pub physical_bits: u32,
}

/// An MTRR can't be followed: it has a type that does not exist, its mask has gaps, or there are too many.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnusableMtrr {
    /// First address that the register is about.
    pub address: HostPhysical,
}

/// A range with its type.
#[derive(Clone, Copy, Debug)]
struct Variable {
    first: u64,
    last: u64,
    memory_type: MemoryType,
}

/// The memory type of every physical address.
#[derive(Clone, Debug)]
pub struct MemoryTypes {
    /// The type where no other register matches; uncacheable when MTRRs are disabled.
    default_type: MemoryType,
    /// The fixed ranges, where they are enabled.
    fixed: Option<[u64; FIXED_REGISTERS]>,
    variable: [Variable; MAX_VARIABLE],
    variable_count: usize,
    /// The last physical address.
    last: u64,
}

impl MemoryTypes {
    /// The types that the registers give.
    ///
    /// # Errors
    /// When a register can't be followed.
    pub fn new(mtrrs: &Mtrrs<'_>) -> Result<Self, UnusableMtrr> {
        let physical_bits = mtrrs.physical_bits.clamp(32, PHYSICAL_BITS);
        let last = 1u64.wrapping_shl(physical_bits).wrapping_sub(1);
        let mut types = Self {
            default_type: MemoryType::Uncacheable,
            fixed: None,
            variable: [Variable {
                first: 0,
                last: 0,
                memory_type: MemoryType::Uncacheable,
            }; MAX_VARIABLE],
            variable_count: 0,
            last,
        };
        if mtrrs.default_type & DEF_TYPE_ENABLE == 0 {
            return Ok(types);
        }
        types.default_type = known_type(mtrrs.default_type, 0)?;
        if mtrrs.capabilities & CAP_FIXED != 0 && mtrrs.default_type & DEF_TYPE_FIXED_ENABLE != 0 {
            types.fixed = Some(mtrrs.fixed);
            let mut address = 0;
            while address < FIXED_END {
                let (memory_type, end) = fixed_type(&mtrrs.fixed, address);
                known_type(memory_type.0.into(), address)?;
                address = end;
            }
        }
        for &(base, mask) in mtrrs.variable {
            if mask & MASK_VALID == 0 {
                continue;
            }
            let mask = mask & last & !0xfff;
            let first = base & mask;
            let unusable = UnusableMtrr {
                address: HostPhysical::new(first),
            };
            // The bits that the mask leaves out; without gaps they are all below the others.
            let inside = !mask & last;
            if inside & inside.wrapping_add(1) != 0 {
                return Err(unusable);
            }
            let slot = types
                .variable
                .get_mut(types.variable_count)
                .ok_or(unusable)?;
            *slot = Variable {
                first,
                last: first | inside,
                memory_type: known_type(base, first)?,
            };
            types.variable_count = types.variable_count.wrapping_add(1);
        }
        Ok(types)
    }

    /// The type of `address`, and for how many bytes from there on it stays the same. The run ends with the physical
    /// address space.
    #[must_use]
    pub fn uniform_run(&self, address: HostPhysical) -> (MemoryType, u64) {
        let start = address.as_u64();
        let (memory_type, mut end) = self.piece(start);
        // Each piece ends where a register begins or ends: there are a few hundred at most.
        while end <= self.last {
            let (next_type, next_end) = self.piece(end);
            if next_type != memory_type {
                break;
            }
            end = next_end;
        }
        (memory_type, end.wrapping_sub(start))
    }

    /// The type of `address` and the next address at which another register may matter.
    ///
    /// SDM, "MTRR Precedences". Overlaps that the manual leaves undefined are uncacheable.
    fn piece(&self, address: u64) -> (MemoryType, u64) {
        if address > self.last {
            return (MemoryType::Uncacheable, 1 << PHYSICAL_BITS);
        }
        if let (Some(fixed), true) = (&self.fixed, address < FIXED_END) {
            return fixed_type(fixed, address);
        }
        let mut found: Option<MemoryType> = None;
        let mut end = self.last.wrapping_add(1);
        for range in self.variable.iter().take(self.variable_count) {
            if address < range.first {
                end = end.min(range.first);
            } else if address <= range.last {
                end = end.min(range.last.wrapping_add(1));
                found = Some(match found {
                    None => range.memory_type,
                    Some(other) => combine(other, range.memory_type),
                });
            }
        }
        (found.unwrap_or(self.default_type), end)
    }
}

fn known_type(register: u64, address: u64) -> Result<MemoryType, UnusableMtrr> {
    let memory_type = MemoryType(register.to_le_bytes()[0]);
    if memory_type.is_known() {
        Ok(memory_type)
    } else {
        Err(UnusableMtrr {
            address: HostPhysical::new(address),
        })
    }
}

/// The type where two variable ranges overlap.
fn combine(left: MemoryType, right: MemoryType) -> MemoryType {
    match (left, right) {
        _ if left == right => left,
        (MemoryType::WriteThrough, MemoryType::WriteBack)
        | (MemoryType::WriteBack, MemoryType::WriteThrough) => MemoryType::WriteThrough,
        _ => MemoryType::Uncacheable,
    }
}

/// The type that the fixed ranges give an address below 1 MiB, and the end of its range.
fn fixed_type(fixed: &[u64; FIXED_REGISTERS], address: u64) -> (MemoryType, u64) {
    let (first_register, start, shift) = match address {
        0..0x8_0000 => (0u64, 0, 16),
        0x8_0000..0xc_0000 => (1, 0x8_0000, 14),
        _ => (3, 0xc_0000, 12),
    };
    let number = address.wrapping_sub(start).wrapping_shr(shift);
    let register = first_register.wrapping_add(number >> 3) as usize;
    let byte = (number & 7) as usize;
    let memory_type = fixed
        .get(register)
        .and_then(|register| register.to_le_bytes().get(byte).copied())
        .unwrap_or(0);
    let end = start.wrapping_add(number.wrapping_add(1).wrapping_shl(shift));
    (MemoryType(memory_type), end)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::collections::BTreeSet;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    const BITS: u32 = 36;

    /// The manual's rules for one page, without any thought of runs.
    fn naive(mtrrs: &Mtrrs<'_>, page: u64) -> MemoryType {
        if mtrrs.default_type & 1 << 11 == 0 {
            return MemoryType::Uncacheable;
        }
        if page < 0x10_0000 && mtrrs.default_type & 1 << 10 != 0 && mtrrs.capabilities & 1 << 8 != 0
        {
            let byte = match page {
                0..0x8_0000 => page / 0x1_0000,
                0x8_0000..0xc_0000 => 8 + (page - 0x8_0000) / 0x4000,
                _ => 24 + (page - 0xc_0000) / 0x1000,
            } as usize;
            return MemoryType(mtrrs.fixed[byte / 8].to_le_bytes()[byte % 8]);
        }
        let address_mask = ((1u64 << mtrrs.physical_bits) - 1) & !0xfff;
        let types: BTreeSet<u8> = mtrrs
            .variable
            .iter()
            .filter(|(base, mask)| {
                mask & 1 << 11 != 0 && page & mask & address_mask == base & mask & address_mask
            })
            .map(|(base, _)| *base as u8)
            .collect();
        match types.iter().copied().collect::<Vec<u8>>()[..] {
            [] => MemoryType(mtrrs.default_type as u8),
            [one] => MemoryType(one),
            [4, 6] => MemoryType::WriteThrough,
            // Uncacheable wins, and stands for what is undefined.
            _ => MemoryType::Uncacheable,
        }
    }

    fn memory_type() -> impl Strategy<Value = u8> {
        prop::sample::select(&[0u8, 1, 4, 5, 6][..])
    }

    fn variable() -> impl Strategy<Value = (u64, u64)> {
        let order = prop_oneof![12u32..20, 20u32..36];
        let valid = prop::bool::weighted(0.8);
        (0u64..64, order, memory_type(), valid, any::<bool>()).prop_map(
            |(number, order, memory_type, valid, top)| {
                let size = 1u64 << order;
                let whole = (1u64 << BITS) - 1;
                let offset = number.wrapping_mul(size);
                let at = if top {
                    whole.wrapping_sub(offset)
                } else {
                    offset
                } & whole;
                let base = at & !0xfff | u64::from(memory_type);
                (base, whole & !(size - 1) | u64::from(valid) << 11)
            },
        )
    }

    proptest! {
        #[test]
        fn follows_the_precedences(
            enables in 0u64..4,
            default_type in memory_type(),
            has_fixed in prop::bool::weighted(0.9),
            fixed in prop::collection::vec(prop::collection::vec(memory_type(), 8), 11),
            variable in prop::collection::vec(variable(), 0..12),
            probes in prop::collection::vec(0u64..1 << (BITS - 12), 20),
        ) {
            let registers: Vec<u64> = fixed
                .iter()
                .map(|bytes| u64::from_le_bytes(bytes[..].try_into().unwrap()))
                .collect();
            let mtrrs = Mtrrs {
                capabilities: u64::from(has_fixed) << 8,
                default_type: enables << 10 | u64::from(default_type),
                fixed: registers[..].try_into().unwrap(),
                variable: &variable,
                physical_bits: BITS,
            };
            let types = MemoryTypes::new(&mtrrs).unwrap();
            // Pages at which the model may change, and some others.
            let mut pages: BTreeSet<u64> = (0..0x110).map(|page| page << 12).collect();
            for (base, mask) in &variable {
                let size = 1u64 << (mask >> 12).trailing_zeros().min(BITS - 12) << 12;
                let start = base & !0xfff & !(size - 1);
                pages.extend([start, start.wrapping_sub(4096), start + size, start + size - 4096]);
            }
            pages.extend(probes.iter().map(|page| page << 12));
            pages.retain(|page| *page < 1 << BITS);

            // The runs cover everything without gaps, each has the model's type, and neighbours differ.
            let mut address = 0;
            let mut before = None;
            while address < 1 << BITS {
                let (memory_type, length) = types.uniform_run(HostPhysical::new(address));
                prop_assert!(length > 0 && length % 4096 == 0);
                prop_assert_ne!(before, Some(memory_type), "a run could be longer");
                prop_assert_eq!(memory_type, naive(&mtrrs, address));
                for page in pages.range(address..address + length) {
                    prop_assert_eq!(memory_type, naive(&mtrrs, *page), "at {:#x}", page);
                    let (same, rest) = types.uniform_run(HostPhysical::new(*page));
                    prop_assert_eq!((same, rest), (memory_type, address + length - page));
                }
                before = Some(memory_type);
                address += length;
            }
            prop_assert_eq!(address, 1 << BITS);
        }
    }

    #[test]
    fn a_common_machine() {
        // 4 GiB of memory, of which 1 GiB lies above 4 GiB; the firmware's default is write-back.
        let variable = [(0xc000_0000, 0xf_c000_0800), (0, 0)];
        let mtrrs = Mtrrs {
            capabilities: 0x508,
            default_type: 0xc06,
            fixed: [
                0x0606_0606_0606_0606,
                0x0606_0606_0606_0606,
                0,
                0x0505_0505_0505_0505,
                0x0505_0505_0505_0505,
                0,
                0,
                0,
                0,
                0x0505_0505_0505_0505,
                0x0505_0505_0505_0505,
            ],
            variable: &variable,
            physical_bits: BITS,
        };
        let types = MemoryTypes::new(&mtrrs).unwrap();
        let run = |address| types.uniform_run(HostPhysical::new(address));
        assert_eq!(run(0), (MemoryType::WriteBack, 0xa_0000));
        assert_eq!(run(0xa_0000), (MemoryType::Uncacheable, 0x2_0000));
        assert_eq!(run(0xc_0000), (MemoryType::WriteProtected, 0x1_0000));
        assert_eq!(run(0x10_0000), (MemoryType::WriteBack, 0xbff0_0000));
        assert_eq!(run(0xfee0_0000), (MemoryType::Uncacheable, 0x120_0000));
        assert_eq!(
            run(1 << 32),
            (MemoryType::WriteBack, (1 << BITS) - (1 << 32))
        );
        assert_eq!(
            run(1 << BITS),
            (MemoryType::Uncacheable, (1 << 52) - (1 << BITS))
        );
    }

    #[test]
    fn refuses_what_it_cannot_follow() {
        let good = Mtrrs {
            capabilities: 0x508,
            default_type: 0xc06,
            fixed: [0; 11],
            variable: &[],
            physical_bits: BITS,
        };
        let refused = |mtrrs: Mtrrs<'_>| MemoryTypes::new(&mtrrs).unwrap_err().address.as_u64();
        assert!(MemoryTypes::new(&good).is_ok());
        let gap = [(0x1_0000_0006, 0xd_0000_0800)];
        assert_eq!(
            refused(Mtrrs {
                variable: &gap,
                ..good
            }),
            0x1_0000_0000
        );
        let unknown_type = [(0x8000_0002, 0xf_8000_0800)];
        assert_eq!(
            refused(Mtrrs {
                variable: &unknown_type,
                ..good
            }),
            0x8000_0000
        );
        let many = [(0xc000_0000, 0xf_c000_0800); 33];
        assert_eq!(
            refused(Mtrrs {
                variable: &many,
                ..good
            }),
            0xc000_0000
        );
        assert_eq!(
            refused(Mtrrs {
                default_type: 0xc07,
                ..good
            }),
            0
        );
        let mut fixed = [0; 11];
        fixed[3] = 0x0300;
        assert_eq!(refused(Mtrrs { fixed, ..good }), 0xc_1000);
        // What is disabled is not looked at.
        assert!(
            MemoryTypes::new(&Mtrrs {
                fixed,
                default_type: 0x806,
                ..good
            })
            .is_ok()
        );
        assert!(
            MemoryTypes::new(&Mtrrs {
                variable: &gap,
                default_type: 6,
                ..good
            })
            .is_ok()
        );
    }
}
