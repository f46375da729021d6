//! Compiles the `.eva` files it is given for a GPU, and writes each kernel's text, LLVM IR and PTX to a folder:
//! `ptx_of FOLDER FILE...`.

use std::path::Path;
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let folder = args.next().ok_or("usage: ptx_of FOLDER FILE...")?;
    std::fs::create_dir_all(&folder)?;
    for file in args {
        let module = eva_ir::text::parse(&std::fs::read_to_string(&file)?).map_err(|e| e.to_string())?;
        let target = eva_passes::target::Target::cuda();
        let plan = eva_passes::compile(&module, &target, &eva_passes::Options::default())?;
        let stem = Path::new(&file).file_stem().and_then(|s| s.to_str()).unwrap_or("kernel").to_string();
        for (i, (_, kernel)) in plan.kernels.iter().enumerate() {
            let started = Instant::now();
            let options = eva_ptx::Options { keep_llvm: true, ..eva_ptx::Options::default() };
            let ptx = eva_ptx::compile(kernel, &options)?;
            let path = |end: &str| Path::new(&folder).join(format!("{stem}-{i}.{end}"));
            std::fs::write(path("kernel"), kernel.to_string())?;
            std::fs::write(path("ptx"), &ptx.text)?;
            std::fs::write(path("ll"), ptx.llvm.unwrap_or_default())?;
            let (name, ms) = (&ptx.name, started.elapsed().as_millis());
            println!(
                "{stem}-{i} {name}: {} threads, {} bytes shared, {ms} ms",
                ptx.threads, ptx.shared_bytes
            );
        }
    }
    Ok(())
}
