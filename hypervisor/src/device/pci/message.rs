//! Interrupt messages: what a function is told to write, and to whom.
//!
//! SDM, "Message Signalled Interrupts". What a cell asks for is never passed on: if it names a CPU of the cell in a way
//! that can be followed, the function gets the plainest message to that CPU, else none.
#![forbid(unsafe_code)]

/// Where messages to local APICs are written to.
const APICS: u32 = 0xfee0_0000;
/// Bits of the address that have a meaning here: destination, redirection hint, destination mode.
const KNOWN_ADDRESS: u32 = 0xfff0_0000 | DESTINATION | REDIRECTION | LOGICAL;
const DESTINATION: u32 = 0xff << 12;
const REDIRECTION: u32 = 1 << 3;
const LOGICAL: u32 = 1 << 2;
/// Bits of the data that have a meaning here: vector, delivery mode, level (which an edge does not need).
const KNOWN_DATA: u32 = 0xff | MODE | ASSERT;
const MODE: u32 = 7 << 8;
const ASSERT: u32 = 1 << 14;
const FIXED: u32 = 0;
const LOWEST_PRIORITY: u32 = 1 << 8;
const NMI: u32 = 4 << 8;
/// The lowest vector that an APIC takes (SDM, "Valid Interrupt Vectors").
const LOWEST_VECTOR: u32 = 16;
/// All CPUs, as a destination.
const BROADCAST: u32 = 0xff;

/// A message that a function may send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message {
    /// The low half of the address; the high one is 0.
    pub address: u32,
    /// The data.
    pub data: u16,
}

impl Message {
    /// Vector, APIC id of the receiver, and whether it is an NMI.
    #[must_use]
    pub const fn receiver(self) -> (u8, u32, bool) {
        let is_nmi = self.data as u32 & MODE == NMI;
        (self.data as u8, (self.address & DESTINATION) >> 12, is_nmi)
    }
}

/// What a cell wants its function to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Wanted {
    /// Low half of the address.
    pub low: u32,
    /// High half of the address.
    pub high: u32,
    /// Data.
    pub data: u32,
}

/// Whether an APIC id is that of a CPU of the cell.
pub type IsOwn<'a> = &'a dyn Fn(u32) -> bool;

impl Wanted {
    /// The message to send instead, with two to the `order` vectors of which the function sets the low bits itself.
    /// `None`: there is no such message to a CPU of the cell.
    #[must_use]
    pub fn checked(self, order: u8, is_own: IsOwn<'_>) -> Option<Message> {
        if self.high != 0
            || self.low & !KNOWN_ADDRESS != 0
            || self.low & 0xfff0_0000 != APICS
            || self.data & !KNOWN_DATA != 0
        {
            return None;
        }
        let destination = (self.low & DESTINATION) >> 12;
        let target = if self.low & LOGICAL != 0 {
            // CPUs of cells are in x2APIC mode: eight bits of a logical destination are those of cluster 0.
            (0..8).find(|id| destination & (1 << id) != 0 && is_own(*id))?
        } else {
            Some(destination).filter(|id| *id != BROADCAST && is_own(*id))?
        };
        let low_bits = 1u32.checked_shl(order.into())?.wrapping_sub(1);
        let vector = self.data & 0xff & !low_bits;
        let data = match self.data & MODE {
            FIXED | LOWEST_PRIORITY if vector >= LOWEST_VECTOR => FIXED | vector,
            NMI => NMI,
            _ => return None,
        };
        Some(Message {
            address: APICS | target << 12,
            data: data as u16,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two CPUs: one in the first cluster's eight, one beyond.
    fn is_own(id: u32) -> bool {
        id == 3 || id == 9
    }

    #[test]
    fn every_address_leads_to_an_own_cpu_or_nowhere() {
        for bits in 0..=0xf_ffffu32 {
            let low = APICS | bits;
            let found = Wanted {
                low,
                high: 0,
                data: 0x41,
            }
            .checked(0, &is_own);
            let (destination, rest) = (bits >> 12, bits & 0xfff);
            let expected = match rest {
                0 | 8 => [3, 9].into_iter().find(|id| *id == destination),
                4 | 12 => (destination & 8 != 0).then_some(3),
                _ => None,
            };
            let expected = expected.map(|id| Message {
                address: APICS | id << 12,
                data: 0x41,
            });
            assert_eq!(found, expected, "{low:#x}");
        }
        for low in [0, 0x1000, 0xfed0_3000, 0xfef0_3000, 0xffff_ffff] {
            assert_eq!(
                Wanted {
                    low,
                    high: 0,
                    data: 0x41
                }
                .checked(0, &is_own),
                None
            );
        }
        let low = APICS | 3 << 12;
        for bit in 0..32 {
            let high = 1 << bit;
            assert_eq!(
                Wanted {
                    low,
                    high,
                    data: 0x41
                }
                .checked(0, &is_own),
                None
            );
        }
    }

    #[test]
    fn every_data_is_fixed_an_nmi_or_nothing() {
        let low = APICS | 9 << 12;
        for order in 0..=5u8 {
            for data in 0..=0x1_ffffu32 {
                let found = Wanted { low, high: 0, data }.checked(order, &is_own);
                let vector = data & 0xff & !((1 << order) - 1);
                let expected = match data & !0x40ff {
                    0 | 0x100 if vector >= 16 => Some(vector),
                    0x400 => Some(0x400),
                    _ => None,
                };
                assert_eq!(
                    found.map(|message| u32::from(message.data)),
                    expected,
                    "{data:#x}"
                );
            }
        }
        assert_eq!(
            Wanted {
                low,
                high: 0,
                data: 0x80
            }
            .checked(32, &is_own),
            None
        );
    }
}
