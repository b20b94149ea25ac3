//! Loads a file of numbers, into memory of its own or into the store, tells how long that took, and sleeps:
//! `weights FILE [--store]`.

use std::error::Error;
use std::io::Read;
use std::ops::Deref;
use std::time::{Duration, Instant};
use std::{env, fs, thread};

fn main() -> Result<(), Box<dyn Error>> {
    let path = env::args().nth(1).ok_or("which file?")?;
    let start = Instant::now();
    let weights = load(&path)?;
    let loaded = start.elapsed();
    let weights: Box<dyn Deref<Target = [f32]>> = if env::args().any(|word| word == "--store") {
        let store = sksm_store::Store::open()?;
        match store.freeze(weights) {
            Ok(frozen) => Box::new(frozen),
            Err(kept) => {
                eprintln!("{kept}");
                Box::new(kept.into_data())
            }
        }
    } else {
        Box::new(weights)
    };
    // All of it is read once, as a model is.
    let sum: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
    let ready = start.elapsed();
    println!("loaded after {loaded:.2?}, ready after {ready:.2?}, sum {sum}");
    thread::sleep(Duration::from_secs(3600));
    Ok(())
}

fn load(path: &str) -> Result<Vec<f32>, Box<dyn Error>> {
    let mut file = fs::File::open(path)?;
    let count = file.metadata()?.len() as usize / 4;
    let mut weights = vec![0f32; count];
    file.read_exact(bytemuck::cast_slice_mut(&mut weights))?;
    Ok(weights)
}
