//! Registers of a device, as drivers see them.
//!
//! Invariant: nothing here touches hardware; on the target the registers are `Mmio`, in tests a model of
//! the device.
#![forbid(unsafe_code)]

/// Registers of 32 bits each. Offsets count bytes, and are multiples of 4.
///
/// All methods panic when an offset is beyond the registers: that is an error of the driver.
pub trait Registers {
    /// Reads a register. It may change something in the device.
    fn read(&self, offset: u32) -> u32;

    /// Writes a register.
    fn write(&mut self, offset: u32, value: u32);

    /// Changes bits of a register.
    fn modify(&mut self, offset: u32, clear: u32, set: u32) {
        let value = self.read(offset);
        self.write(offset, value & !clear | set);
    }
}

/// Waits until `done`, looking `attempts` times at the most. Whether it came to that.
///
/// A device answers each look in its own time, so a count is a deadline that needs no clock.
#[must_use]
pub fn wait(attempts: u32, mut done: impl FnMut() -> bool) -> bool {
    (0..attempts).any(|_| {
        core::hint::spin_loop();
        done()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends() {
        let mut looks = 0;
        assert!(wait(10, || {
            looks += 1;
            looks == 3
        }));
        assert_eq!(looks, 3);
        looks = 0;
        assert!(!wait(10, || {
            looks += 1;
            false
        }));
        assert_eq!(looks, 10);
    }
}
