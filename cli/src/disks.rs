//! What keeps Linux from giving a PCI function away: disks behind it that are in use.
//!
//! Linux itself lets go of a disk that is mounted, and fails later.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};

/// Where the kernel tells what is mounted and swapped to.
pub struct Uses {
    mounts: String,
    swaps: String,
}

impl Uses {
    /// Reads what there is below `proc`, which is /proc.
    #[must_use]
    pub fn read(proc: &Path) -> Self {
        let text = |name: &str| fs::read_to_string(proc.join(name)).unwrap_or_default();
        Self {
            mounts: text("self/mountinfo"),
            swaps: text("swaps"),
        }
    }

    /// Where a block device is mounted; `number` is "8:1".
    fn mounted(&self, number: &str) -> Option<&str> {
        self.mounts.lines().find_map(|line| {
            let mut fields = line.split_whitespace();
            let found = fields.nth(2)?;
            (found == number).then(|| fields.nth(1)).flatten()
        })
    }

    fn is_swap(&self, name: &str) -> bool {
        let names = self
            .swaps
            .lines()
            .filter_map(|line| line.split_whitespace().next());
        names.into_iter().any(|path| path == format!("/dev/{name}"))
    }

    /// What a disk behind the function ("0000:00:03.0") is in use for, in words; `None`: there is no such disk. `sysfs` is
    /// /sys.
    #[must_use]
    pub fn of_function(&self, sysfs: &Path, function: &str) -> Option<String> {
        let entries = fs::read_dir(sysfs.join("class/block")).ok()?;
        let mut links: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        links.sort();
        links.iter().find_map(|link| {
            let place = fs::canonicalize(link).ok()?;
            let is_behind = place.iter().any(|part| part == function);
            is_behind.then(|| self.of_block(&place)).flatten()
        })
    }

    fn of_block(&self, place: &Path) -> Option<String> {
        let name = place.file_name()?.to_string_lossy().into_owned();
        let number = fs::read_to_string(place.join("dev")).unwrap_or_default();
        if let Some(directory) = self.mounted(number.trim()) {
            return Some(format!("/dev/{name} is mounted on {directory}"));
        }
        if self.is_swap(&name) {
            return Some(format!("Linux swaps to /dev/{name}"));
        }
        let mut holders = fs::read_dir(place.join("holders")).ok()?.flatten();
        let holder = holders.next()?.file_name();
        Some(format!(
            "/dev/{name} is a part of /dev/{}",
            holder.to_string_lossy()
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn disks_in_use_are_found_behind_their_functions() {
        let machine = crate::tests::fake::Machine::new();
        let sysfs = &machine.path("disks");
        let class = sysfs.join("class/block");
        fs::create_dir_all(&class).unwrap();
        for (name, place, number) in [
            (
                "sda",
                "devices/pci0000:00/0000:00:1f.2/host0/block/sda",
                "8:0",
            ),
            (
                "sda1",
                "devices/pci0000:00/0000:00:1f.2/host0/block/sda/sda1",
                "8:1",
            ),
            (
                "nvme0n1",
                "devices/pci0000:00/0000:00:04.0/nvme/nvme0n1",
                "259:0",
            ),
            (
                "vda",
                "devices/pci0000:00/0000:00:05.0/virtio0/block/vda",
                "254:0",
            ),
            (
                "sdb",
                "devices/pci0000:00/0000:00:06.0/host1/block/sdb",
                "8:16",
            ),
        ] {
            let place = sysfs.join(place);
            fs::create_dir_all(place.join("holders")).unwrap();
            fs::write(place.join("dev"), format!("{number}\n")).unwrap();
            symlink(place, class.join(name)).unwrap();
        }
        let held = "devices/pci0000:00/0000:00:05.0/virtio0/block/vda/holders/dm-0";
        fs::create_dir_all(sysfs.join(held)).unwrap();
        let uses = Uses {
            mounts: "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n".to_owned(),
            swaps: "Filename Type Size Used Priority\n/dev/nvme0n1 partition 1 0 -2\n".to_owned(),
        };
        let told = |function: &str| uses.of_function(sysfs, function);
        assert_eq!(told("0000:00:1f.2").unwrap(), "/dev/sda1 is mounted on /");
        assert_eq!(told("0000:00:04.0").unwrap(), "Linux swaps to /dev/nvme0n1");
        assert_eq!(
            told("0000:00:05.0").unwrap(),
            "/dev/vda is a part of /dev/dm-0"
        );
        assert_eq!(told("0000:00:06.0"), None);
        assert_eq!(told("0000:00:07.0"), None);
    }
}
