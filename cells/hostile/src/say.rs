//! Lines on the console, whole ones, of all CPUs of the cell.

use core::hint::spin_loop;
use core::sync::atomic::{AtomicBool, Ordering};

static TAKEN: AtomicBool = AtomicBool::new(false);

/// Does `print` when no other CPU does.
pub fn alone(print: impl FnOnce()) {
    while TAKEN.swap(true, Ordering::Acquire) {
        spin_loop();
    }
    print();
    TAKEN.store(false, Ordering::Release);
}

/// Prints a line that begins with the cell's name.
macro_rules! say {
    ($format:literal $($argument:tt)*) => {
        $crate::say::alone(|| {
            ::gaol_cell::println!("{}{}", ::hostile_cell::outcome::PREFIX, ::core::format_args!($format $($argument)*));
        })
    };
}
pub(crate) use say;
