//! No circle of imports among the modules of a crate, or of the executable.
//!
//! An arrow goes from one module to another where its code names an item of the other: in a `use`, or as
//! a path. A name that is re-exported stands for the file that declares it. `mod x;`, `pub use`, and items
//! under `cfg(test)` are no arrows. Methods are not followed: a call says nothing about its file.
//!
//! Modules side by side must have no circle, each taken with everything below it. A module and its own
//! parts (`lane.rs` and `lane/…`, `lib.rs` and its crate) are one module, cut into files: arrows between
//! them go both ways, and are not counted.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    none,
    paths::{Module, parse},
    sources,
};

/// Circles that still stand, by the crate's root. The list may only shrink.
const CIRCLES: &[(&str, &str)] = &[];

type Path = Vec<String>;

/// The modules of a crate, each with its path from the crate's root.
#[derive(Default)]
struct Modules(BTreeMap<Path, Module>);

/// The target of a path.
enum Named {
    Module(Path),
    /// Something that the module of this path declares.
    ItemOf(Path),
}

/// Names that are being looked up, and where: imports may go round.
type Asked = BTreeSet<(Path, String)>;

impl Modules {
    fn read(root: &str, texts: &BTreeMap<&str, &str>) -> Self {
        let mut modules = Self::default();
        let folder = root.rsplit_once('/').map_or("", |(folder, _)| folder);
        modules.add(Path::new(), folder, parse(texts[root]), texts);
        modules
    }

    fn add(&mut self, path: Path, folder: &str, module: Module, texts: &BTreeMap<&str, &str>) {
        for name in &module.files {
            let folder = format!("{folder}/{name}");
            let files = [format!("{folder}.rs"), format!("{folder}/mod.rs")];
            if let Some(text) = files.iter().find_map(|file| texts.get(&**file)) {
                self.add(below(&path, name), &folder, parse(text), texts);
            }
        }
        for (name, inline) in &module.inline {
            self.add(below(&path, name), &format!("{folder}/{name}"), inline.clone(), texts);
        }
        self.0.insert(path, module);
    }

    /// Where a path in a module leads; `None` for other crates, and names of the function's own.
    fn resolve(&self, at: &[String], path: &[String], asked: &mut Asked) -> Option<Named> {
        let mut at = at.to_vec();
        for (index, name) in path.iter().enumerate() {
            match &**name {
                "crate" => at.clear(),
                "super" => _ = at.pop(),
                "self" => {}
                _ => match self.find(&at, name, asked) {
                    Some(Named::Module(found)) => at = found,
                    Some(item) => return Some(item),
                    // In a module of ours: made by a macro.
                    None if index > 0 => return Some(Named::ItemOf(at)),
                    None => return None,
                },
            }
        }
        Some(Named::Module(at))
    }

    fn find(&self, at: &[String], name: &str, asked: &mut Asked) -> Option<Named> {
        let module = self.0.get(at)?;
        if !asked.insert((at.to_vec(), name.to_owned())) {
            return None;
        }
        let child = below(at, name);
        if self.0.contains_key(&child) {
            return Some(Named::Module(child));
        }
        if module.items.contains(name) {
            return Some(Named::ItemOf(at.to_vec()));
        }
        if let Some(import) = module.imports.iter().find(|import| import.name == name) {
            return self.resolve(at, &import.path, asked);
        }
        let mut globs = module.imports.iter().filter(|import| import.name == "*");
        globs.find_map(|glob| match self.resolve(at, &glob.path, asked)? {
            Named::Module(module) => self.find(&module, name, asked),
            Named::ItemOf(_) => None,
        })
    }

    /// Arrows between modules, each with a name that it stands for.
    fn arrows(&self) -> BTreeMap<(Path, Path), String> {
        let mut arrows = BTreeMap::new();
        for (at, module) in &self.0 {
            let own = module.imports.iter().filter(|import| !import.re_export);
            for path in own.map(|import| &import.path).chain(&module.mentions) {
                if let Some(Named::ItemOf(to)) = self.resolve(at, path, &mut Asked::new()) {
                    arrows.insert((at.clone(), to), path.join("::"));
                }
            }
        }
        arrows
    }

    /// The circles, each with its modules in order and the arrows among these.
    fn circles(&self) -> Vec<(Vec<String>, Vec<String>)> {
        let mut beside: BTreeMap<Path, BTreeMap<Path, String>> = BTreeMap::new();
        for ((from, to), name) in self.arrows() {
            let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
            if common < from.len() && common < to.len() {
                let (from, to) = (from[..=common].to_vec(), to[..=common].to_vec());
                beside.entry(from).or_default().insert(to, name);
            }
        }
        let mut circles = BTreeMap::new();
        for start in beside.keys() {
            let there = reached(start, &beside);
            let circle = there.iter().filter(|module| reached(module, &beside).contains(start));
            let circle: Vec<&Path> = circle.collect();
            let within =
                circle.iter().flat_map(|from| beside[*from].iter().map(move |to| (from, to)));
            let arrows =
                within.filter(|(_, (to, _))| circle.contains(to)).map(|(from, (to, name))| {
                    format!("{} → {} ({name})", from.join("::"), to.join("::"))
                });
            let names = circle.iter().map(|module| module.join("::")).collect::<Vec<_>>();
            circles.insert(names, arrows.collect());
        }
        circles.remove(&Vec::new());
        circles.into_iter().collect()
    }
}

fn below(path: &[String], name: &str) -> Path {
    path.iter().map(String::as_str).chain([name]).map(str::to_owned).collect()
}

/// The modules at the ends of the arrows from one, and of theirs.
fn reached(start: &Path, arrows: &BTreeMap<Path, BTreeMap<Path, String>>) -> BTreeSet<Path> {
    let mut there = BTreeSet::new();
    let mut next = vec![start];
    while let Some(from) = next.pop() {
        let to = arrows.get(from).into_iter().flat_map(BTreeMap::keys);
        next.extend(to.filter(|to| there.insert((*to).clone())));
    }
    there
}

/// `src/main.rs`, `src/x/lib.rs`, `workers/lib.rs`.
fn is_root(path: &str) -> bool {
    let parts: Vec<_> = path.split('/').collect();
    matches!(parts[..], ["src", "main.rs"] | ["src", _, "lib.rs"] | ["workers", "lib.rs"])
}

#[test]
fn imports_go_round_in_no_circle() {
    let sources = sources();
    let texts: BTreeMap<_, _> = sources.iter().map(|file| (&*file.path, &*file.text)).collect();
    let mut findings = Vec::new();
    let mut listed: BTreeSet<_> =
        CIRCLES.iter().map(|(root, names)| (*root, (*names).to_owned())).collect();
    for root in texts.keys().filter(|path| is_root(path)) {
        for (circle, arrows) in Modules::read(root, &texts).circles() {
            let names = circle.join(" ");
            if !listed.remove(&(*root, names.clone())) {
                findings.push(format!(
                    "{root}: {names}: these name each other's items: move what both need below both, or \
                     hand it in:\n    {}",
                    arrows.join("\n    ")
                ));
            }
        }
    }
    let gone = listed.iter();
    findings.extend(gone.map(|(root, names)| {
        format!("{root}: {names}: no longer a circle: take its line off CIRCLES")
    }));
    none(findings);
}

#[test]
fn a_circle_is_found_through_re_exports_and_not_between_a_module_and_its_parts() {
    let texts = BTreeMap::from([
        ("src/x/lib.rs", "mod a; mod b; mod c; pub use b::Thing; pub struct Error;"),
        ("src/x/a.rs", "use crate::{Error, Thing}; pub fn f() -> c::T { crate::c::g() }"),
        ("src/x/b.rs", "use super::a; pub struct Thing; fn h() { a::f(); part::p() } mod part;"),
        ("src/x/b/part.rs", "use super::*; fn p(thing: Thing) {}"),
        ("src/x/c.rs", "pub fn g() {} #[cfg(test)] mod tests { use crate::a::f; }"),
    ]);
    let circles = Modules::read("src/x/lib.rs", &texts).circles();
    let arrows = ["a → b (crate::Thing)", "b → a (a::f)"].map(str::to_owned).to_vec();
    assert_eq!(circles, [(vec!["a".to_owned(), "b".to_owned()], arrows)]);
}
