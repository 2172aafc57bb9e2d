//! Random lists of operations, crashes and faults included, against a model.

use super::*;

struct World {
    memory: MemDisk,
    fault: FaultDisk,
    disk: Arc<dyn Disk>,
    core: Option<AppenderCore>,
    rng: fastrand::Rng,
    /// By number: what a receipt was given for.
    acked: Vec<(Seq, Vec<u8>)>,
    /// Handed in since the last look at the whole log; any of it may be there.
    made: u32,
}

impl World {
    fn new(seed: u64) -> World {
        let memory = MemDisk::new();
        let fault = FaultDisk::new(Arc::new(memory.clone()));
        let disk: Arc<dyn Disk> = Arc::new(fault.clone());
        let rng = fastrand::Rng::with_seed(seed);
        World { memory, fault, disk, core: None, rng, acked: vec![], made: 0 }
    }

    fn payload(&mut self) -> Vec<u8> {
        self.made += 1;
        let len = if self.rng.u8(..) == 0 { 6000 } else { self.rng.usize(4..700) };
        let mut payload = vec![self.made.to_le_bytes()[0]; len];
        payload[..4].copy_from_slice(&self.made.to_le_bytes());
        payload
    }

    fn batch(&mut self) -> Result<(), String> {
        let (mut requests, mut waiting) = (vec![], vec![]);
        for _ in 0..self.rng.usize(1..8) {
            let payload = self.payload();
            if self.rng.u8(..) < 80 {
                requests.push(written(payload).0);
            } else {
                let (request, result) = durable(payload.clone(), Priority::Event);
                requests.push(request);
                waiting.push((payload, result));
            }
        }
        let Some(core) = &mut self.core else { return Ok(()) };
        core.run_batch(Timestamp(self.made.into()), requests);
        let durable = core.writer().durable();
        for (payload, mut result) in waiting {
            match result.try_recv() {
                Ok(Ok(receipt)) if receipt.seq() > durable => {
                    return Err(format!("receipt for {} before its sync", receipt.seq()));
                }
                Ok(Ok(receipt)) => self.acked.push((receipt.seq(), payload)),
                Ok(Err(_)) => {}
                Err(error) => return Err(format!("a request was not completed: {error}")),
            }
        }
        Ok(())
    }

    fn inject(&mut self) {
        let calls = [
            None,
            Some(Call::Write),
            Some(Call::SyncData),
            Some(Call::SyncAll),
            Some(Call::SetLen),
            Some(Call::SyncDir),
            Some(Call::Open),
        ];
        let error = if self.rng.bool() { io::ErrorKind::StorageFull } else { io::ErrorKind::Other };
        let call = calls[self.rng.usize(..calls.len())];
        let (nth, sticky) = (self.rng.u64(1..12), self.rng.u8(..) < 60);
        self.fault.fail(Fault { call, nth, error, sticky });
    }

    /// Opens, through whatever faults and further crashes come, and checks everything.
    fn open(&mut self, crash: bool) -> Result<(), String> {
        self.core = None;
        if crash {
            self.memory.crash(&mut self.rng);
        }
        if self.rng.u8(..) < 60 {
            self.inject();
            // An error half-way through recovery, then a power cut.
            let half_way = LogWriter::open(self.disk.clone(), dir(), SMALL);
            if half_way.is_err() || self.rng.bool() {
                drop(half_way);
                self.memory.crash(&mut self.rng);
            }
        }
        self.fault.heal();
        let opened = LogWriter::open(self.disk.clone(), dir(), SMALL);
        let (log, report) = opened.map_err(|e| format!("does not open: {e}"))?;
        if !report.damage.is_empty() || report.first != 1 {
            return Err(format!("reports damage: {report:?}"));
        }
        let last = report.next - 1;
        self.core = Some(AppenderCore::new(log).with_limits(NO_RESERVE));
        self.check(last)
    }

    fn check(&self, last: Seq) -> Result<(), String> {
        let items = scan_all(&self.disk, last);
        if !damage(&items).is_empty() {
            return Err(format!("scan finds damage: {:?}", damage(&items)));
        }
        let found = frames(&items);
        if !found.iter().map(|f| f.0).eq(1..=last) {
            return Err(format!("not gapless up to {last}: {} records", found.len()));
        }
        let made = |p: &[u8]| p.first_chunk().map_or(0, |b| u32::from_le_bytes(*b));
        if !found.windows(2).all(|w| made(&w[0].1) < made(&w[1].1)) {
            return Err("out of order".to_owned());
        }
        for (seq, payload) in &self.acked {
            let at = usize::try_from(*seq).unwrap() - 1;
            if found.get(at).map(|f| &f.1) != Some(payload) {
                return Err(format!("acknowledged record {seq} is gone (last is {last})"));
            }
        }
        Ok(())
    }

    fn step(&mut self) -> Result<(), String> {
        match self.rng.u8(..100) {
            0..60 => self.batch(),
            60..66 => {
                if let Some(core) = &mut self.core {
                    core.wake();
                }
                Ok(())
            }
            66..76 => {
                if let Some(core) = &mut self.core {
                    core.prepare();
                }
                Ok(())
            }
            76..84 => {
                self.inject();
                Ok(())
            }
            84..88 => {
                self.fault.heal();
                Ok(())
            }
            88..92 => {
                let last = self.core.as_ref().map_or(0, |c| c.writer().durable());
                self.fault.heal();
                self.check(last)
            }
            92..96 => self.open(false),
            _ => self.open(true),
        }
    }

    fn run(seed: u64, sync_lies: bool) -> Result<(), String> {
        let mut world = World::new(seed);
        world.memory.set_sync_lies(sync_lies);
        world.open(false)?;
        for _ in 0..40 {
            world.step()?;
        }
        world.open(true)
    }
}

#[test]
fn what_was_acknowledged_survives_crashes_and_faults() {
    // Other seeds than the usual ones: `SEED=5000 cargo test`.
    let from: u64 = std::env::var("SEED").map_or(0, |s| s.parse().unwrap());
    for seed in from..from + 2000 {
        if let Err(why) = World::run(seed, false) {
            panic!("seed {seed}: {why}");
        }
    }
}

#[test]
fn a_disk_that_lies_about_syncs_is_caught() {
    let caught = (0..50).filter(|seed| World::run(*seed, true).is_err()).count();
    assert!(caught > 25, "only {caught} of 50");
}

/// A fixed script, failed at every call it makes in turn.
#[test]
fn a_fault_in_any_single_call_loses_nothing() {
    for sticky in [false, true] {
        for error in [io::ErrorKind::Other, io::ErrorKind::StorageFull] {
            let mut nth = 1;
            loop {
                let mut world = World::new(7);
                world.fault.fail(Fault { call: None, nth, error, sticky });
                let result = script(&mut world);
                assert!(result.is_ok(), "call {nth}, sticky {sticky}: {result:?}");
                if world.fault.count(None) < nth {
                    break;
                }
                nth += 1;
            }
            assert!(nth > 50, "the script makes only {nth} calls");
        }
    }
}

fn script(world: &mut World) -> Result<(), String> {
    if let Ok((log, _)) = LogWriter::open(world.disk.clone(), dir(), SMALL) {
        world.core = Some(AppenderCore::new(log).with_limits(NO_RESERVE));
    }
    for _ in 0..8 {
        world.batch()?;
        if let Some(core) = &mut world.core {
            core.prepare();
            core.wake();
        }
    }
    let calls = world.fault.count(None);
    world.fault.heal();
    world.memory.crash(&mut world.rng);
    let (_, report) = open(&world.disk);
    assert!(report.damage.is_empty() && calls > 0);
    world.check(report.next - 1)
}

#[test]
fn files_that_an_old_handle_could_reach_are_never_written_by_two() {
    let (memory, disk) = mem();
    let file = disk.open(&seg(1), Open::CreateNew).unwrap();
    memory.crash(&mut fastrand::Rng::with_seed(1));
    assert!(file.write_all_at(b"late", 0).is_err());
}
