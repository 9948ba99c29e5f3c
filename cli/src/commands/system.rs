//! `gaol enable` and `gaol disable`.

use std::io::Write;
use std::path::Path;

use gaol_config::quantity::Size;
use gaol_config::{Configuration, System};
use serde_json::{Value, json};

use super::create;
use crate::arguments::EnableArguments;
use crate::failure::{Failure, Result};
use crate::host::{Host, read_bytes, read_configuration};
use crate::memory::{Shortage, with_blocks};
use crate::output::{Report, grouped};

/// `gaol enable`.
///
/// # Errors
/// Why Gaol is not enabled.
pub fn enable(
    host: &mut Host,
    arguments: &EnableArguments,
    asides: &mut dyn Write,
) -> Result<Report> {
    let (system, origin) = match &arguments.system {
        Some(_) if arguments.unchecked => (None, "file"),
        Some(path) => {
            let system = system_configuration(path)?;
            create::check_fits(host, &system)?;
            (Some(system), "file")
        }
        None => {
            let (system, origin) = create::for_this_machine(host, asides);
            (Some(system), origin)
        }
    };
    let (bytes, facts) = match (&system, &arguments.system) {
        (Some(system), _) => (
            create::with_iommus(host, system, asides),
            host.facts_of_system(system),
        ),
        (None, Some(path)) => (unchecked(path)?, host.facts(None)),
        (None, None) => (Vec::new(), host.facts(None)),
    };
    let (image_path, image) = host.image(arguments.image.as_deref())?;
    let size = facts.memory_size;
    let enabled = with_blocks(
        host,
        |error| Shortage::of(error, size, |_| None),
        |host, _| host.device.enable(&image, &bytes, arguments.fail_at),
    )
    .map_err(|error| host.failure("cannot enable Gaol", error, &facts))?;
    let mut text = format!(
        "Gaol is enabled in {} at {:#x}, after {} cycles.\n",
        Size(enabled.region_size),
        enabled.region_physical,
        grouped(enabled.cycles)
    );
    let mut json = json!({
        "ok": true,
        "image": image_path.display().to_string(),
        "region_physical": enabled.region_physical,
        "region_size": enabled.region_size,
        "cycles": enabled.cycles,
    });
    let saved = system.map(|system| create::save(host, &system));
    add_origin(host, origin, saved, &mut text, &mut json);
    if let Ok((total, used)) = host.sysfs.pool() {
        text.push_str(&format!(
            "Of {} page frames in its pool, {} are in use.\n",
            grouped(total),
            grouped(used)
        ));
        json["pool_total"] = total.into();
        json["pool_used"] = used.into();
    }
    Ok(Report { text, json })
}

/// Says which configuration it was, and where it is kept.
fn add_origin(
    host: &Host,
    origin: &str,
    saved: Option<std::result::Result<(), String>>,
    text: &mut String,
    json: &mut Value,
) {
    json["configuration"] = origin.into();
    text.push_str(match origin {
        "machine" => "Its configuration was made for this machine.\n",
        "built-in" => "Its configuration is the built-in one.\n",
        _ => "",
    });
    match saved {
        Some(Ok(())) => json["saved"] = host.saved_system.display().to_string().into(),
        Some(Err(hint)) => {
            text.push_str(&format!("{hint}\n"));
            json["hint"] = hint.into();
        }
        None => (),
    }
}

/// TOML is compiled; a binary file is nobody's business but the module's.
fn unchecked(path: &Path) -> Result<Vec<u8>> {
    let file = read_bytes(path)?;
    Ok(
        match Configuration::read(&path.display().to_string(), &file) {
            Ok(Configuration::System(system)) => system.bytes().to_vec(),
            _ => file,
        },
    )
}

fn system_configuration(path: &Path) -> Result<System> {
    match read_configuration(path)? {
        Configuration::System(system) => Ok(system),
        Configuration::Cell(_) => Err(Failure::new(
            "configuration_invalid",
            format!("{} is the configuration of a cell", path.display()),
            "Give a system configuration here, and this one to `gaol cell create`.",
        )),
    }
}

/// `gaol disable`.
///
/// # Errors
/// Why Gaol is still enabled.
pub fn disable(host: &mut Host, force: bool) -> Result<Report> {
    let cost = host
        .device
        .disable(force)
        .map_err(|error| host.failure("cannot disable Gaol", error, &host.facts(None)))?;
    create::forget(host);
    Ok(Report {
        text: format!(
            "Gaol is disabled, after {} cycles. Linux has the machine back.\n",
            grouped(cost.cycles)
        ),
        json: json!({
            "ok": true,
            "cycles": cost.cycles,
            "scrub_cycles": cost.scrub_cycles,
        }),
    })
}
