//! Writes the seeds of each fuzz target where cargo-fuzz looks for them: `fuzz_seeds fuzz/corpus`.

use std::path::PathBuf;

fn main() -> anyhow::Result<()> {
    let dir = std::env::args_os().nth(1).map(PathBuf::from);
    let dir = dir.ok_or_else(|| anyhow::anyhow!("usage: fuzz_seeds DIR"))?;
    for target in monitor::fuzz::TARGETS {
        let corpus = dir.join(target.name);
        std::fs::create_dir_all(&corpus)?;
        for (at, seed) in target.seeds.iter().enumerate() {
            std::fs::write(corpus.join(format!("seed-{at}")), seed)?;
        }
    }
    Ok(())
}
