//! Text that goes into the store, before `main`.

use sksm_store::{Error, Object, Shared, Store};

use crate::merging::WANTED;
use crate::report::Line;
use crate::settings::Settings;

const WHEN: &[u8] = b"in the store";

/// Shares what all objects have of their own in their text.
pub fn share(settings: &Settings) {
    match WANTED.survives(|| _ = try_to(settings)) {
        Ok(()) => {
            let result = try_to(settings);
            WANTED.say(WHEN, |line| tell(line, result));
        }
        Err(obstacle) => WANTED.say(WHEN, |line| obstacle.tell(line)),
    }
}

fn try_to(settings: &Settings) -> Result<Shared, Error> {
    let mut store = Store::open_named(settings.store_dir)?;
    if let Some(bytes) = settings.store_limit {
        store = store.with_limit(bytes);
    }
    store.share_text(Object::All)
}

fn tell(line: &mut Line, result: Result<Shared, Error>) {
    let fault = match result {
        Ok(shared) => {
            line.text(b"shared ").number(shared.pages as u64);
            line.text(b" pages of text, ")
                .number(shared.published as u64);
            line.text(b" of them new");
            if shared.breakpoints > 0 {
                line.text(b"; ").number(shared.breakpoints as u64);
                line.text(b" have breakpoints");
            }
            if shared.kept > 0 {
                line.text(b"; ").number(shared.kept as u64).text(b" kept");
            }
            shared.fault
        }
        Err(error) => {
            line.text(b"nothing shared");
            Some(error)
        }
    };
    if let Some(error) = fault {
        line.text(b": ").text(error.fault().advice().as_bytes());
        if let Some(errno) = error.raw_os_error() {
            line.text(b" (errno ")
                .number(errno.unsigned_abs().into())
                .text(b")");
        }
    }
}
