//! Images that are not what they should be.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use gaol_abi::checksum::crc32_with_hole;
use gaol_abi::image::{CHECKSUM_OFFSET, ImageHeader, Vendor};

use super::{CPUS, Context, SYSTEM, load_modules};
use crate::artefacts;
use crate::gaol::Gaol;
use crate::machine::Spec;
use crate::runner::{Check, Group};

pub(super) const GROUP: Group = Group {
    name: "images",
    machine: with_bad_images,
    prepare: load_modules,
    except: &[],
    checks: &[
        Check {
            name: "damaged",
            run: |context| refused(context, "damaged.img", "damaged"),
        },
        Check {
            name: "truncated",
            run: |context| refused(context, "truncated.img", "truncated"),
        },
        Check {
            name: "empty",
            run: |context| refused(context, "empty.img", "image"),
        },
        Check {
            name: "not-an-image",
            run: |context| refused(context, "gaol.ko", "not Gaol's"),
        },
        Check {
            name: "of-another-vendor",
            run: |context| {
                let other = match context.platform.vendor() {
                    Vendor::Svm => "Intel",
                    _ => "AMD",
                };
                refused(context, "vendor.img", other)
            },
        },
        Check {
            name: "of-another-revision",
            run: |context| refused(context, "revision.img", "revision 4711"),
        },
        Check {
            name: "with-an-entry-outside-itself",
            run: |context| refused(context, "entry.img", "image"),
        },
        Check {
            name: "that-is-not-there",
            run: |context| refused(context, "nowhere.img", "nowhere.img"),
        },
    ],
};

fn with_bad_images(spec: Spec) -> Result<Spec> {
    let path = artefacts::gaol().join(spec.platform.image());
    let image = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let changed = |offset: usize, bytes: &[u8]| {
        let mut image = image.clone();
        image[offset..offset + bytes.len()].copy_from_slice(bytes);
        let checksum = crc32_with_hole(&image, CHECKSUM_OFFSET);
        image[CHECKSUM_OFFSET..CHECKSUM_OFFSET + 4].copy_from_slice(&checksum.to_le_bytes());
        image
    };
    let mut damaged = image.clone();
    damaged[image.len() / 2] ^= 1;
    let vendor = std::mem::offset_of!(ImageHeader, vendor);
    let other = match spec.platform.vendor() {
        Vendor::Svm => Vendor::Vmx,
        _ => Vendor::Svm,
    };
    let revision = std::mem::offset_of!(ImageHeader, abi_revision);
    let entry = std::mem::offset_of!(ImageHeader, entry);
    Ok(spec
        .content("root/damaged.img", damaged)
        .content("root/truncated.img", &image[..image.len() / 2])
        .content("root/empty.img", [])
        .content("root/vendor.img", changed(vendor, &other.0.to_le_bytes()))
        .content(
            "root/revision.img",
            changed(revision, &4711_u32.to_le_bytes()),
        )
        .content("root/entry.img", changed(entry, &u64::MAX.to_le_bytes())))
}

fn refused(context: &mut Context, image: &str, reason: &str) -> Result<()> {
    context
        .machine
        .refused(&format!("enable {SYSTEM} --image /root/{image}"), reason)?;
    ensure!(
        context.sysfs_number("enabled")? == 0,
        "it was enabled all the same"
    );
    context.machine.linux_is_well(CPUS)?;
    context.enable()?;
    context.disable()
}
