//! The world around the appliance: senders, handlers, a machine with clocks and a disk, and whatever
//! befalls them.

use std::sync::Arc;
use std::time::Duration;

use bluehook::clock::{Clock, TestClock, Timestamp};
use bluehook::delivery::{DeliveryKey, HandlerName, State};
use bluehook::event::{Envelope, NewEvent};
use bluehook::replay::planner::{DUE_POLL_MS, Input};
use bluehook::signature::{Policy, Scheme, Secret, sign_hex, verify};
use bluehook::store::disk::{Call, Disk, Fault, FaultDisk, MemDisk};
use bluehook::store::index::memory::MemoryKv;
use bluehook::store::record::Record;

use super::handlers::{KINDS, SimHandler, handlers};
use super::model::{Check, Logged, Model, SECRET, Wanted};
use super::process::{Opened, Outside, Process, RESERVE_BYTES, Sabotage, data_dir};

/// 2026-09-21.
const BEGINNING: Timestamp = Timestamp(1_790_000_000_000);
const YEAR_MS: i64 = 365 * 86_400_000;
const ACTIONS: usize = 60;
/// More than any moment has to do.
const STEPS_MAX: usize = 30_000;

pub struct World {
    fault: FaultDisk,
    disk: Arc<dyn Disk>,
    kv: MemoryKv,
    /// Something is, or may soon be, wrong with the disk.
    trouble: bool,
    process: Option<Box<Process>>,
    out: Outside,
    policy: Policy,
    ids: usize,
    power_cuts: usize,
}

/// What a story was about.
#[derive(Debug, Default)]
pub struct Told {
    pub acknowledged: usize,
    pub runs: usize,
    pub power_cuts: usize,
}

impl World {
    fn new(seed: u64, sabotage: Sabotage) -> World {
        let memory = MemDisk::new();
        memory.set_sync_lies(sabotage == Sabotage::SyncLies);
        let fault = FaultDisk::new(Arc::new(memory.clone()));
        let mut rng = fastrand::Rng::with_seed(seed);
        let handlers = handlers(&mut rng);
        World {
            disk: Arc::new(fault.clone()),
            fault,
            kv: MemoryKv::crashable(),
            trouble: false,
            process: None,
            out: Outside {
                rng,
                memory,
                clock: Arc::new(TestClock::new(BEGINNING)),
                model: Model::default(),
                handlers,
                sabotage,
                calm: false,
                tells: std::env::var("BLUEHOOK_SEED").is_ok(),
            },
            policy: Policy {
                header: "x-bluereplies-signature".to_owned(),
                scheme: Scheme::Hex,
                secrets: vec![Secret::new(SECRET.to_vec())],
                canonical_json: true,
            },
            ids: 0,
            power_cuts: 0,
        }
    }

    /// A whole story, from one seed.
    pub fn run(seed: u64, sabotage: Sabotage) -> Result<Told, String> {
        let mut world = World::new(seed, sabotage);
        world.start()?;
        for n in 0..ACTIONS {
            world.act().map_err(|why| format!("action {n}: {why}"))?;
        }
        world.end()?;
        Ok(Told {
            acknowledged: world.out.model.acked.len(),
            runs: world.out.model.runs.len(),
            power_cuts: world.power_cuts,
        })
    }

    fn chance(&mut self, of_256: u8) -> bool {
        self.out.rng.u8(..) < of_256
    }

    fn act(&mut self) -> Check {
        let action = self.out.rng.u8(0..100);
        self.out.tell(|| format!("action {action}"));
        match action {
            0..22 => {
                for _ in 0..self.out.rng.usize(1..5) {
                    self.send()?;
                }
                self.work(20)
            }
            22..52 => {
                let steps = self.out.rng.usize(1..60);
                self.work(steps)
            }
            52..60 => self.come_to_rest(),
            60..72 => {
                self.let_time_pass();
                self.work(20)
            }
            72..74 => {
                self.jump();
                Ok(())
            }
            74..77 => self.kill(),
            77..80 => self.cut_power(),
            80..81 => self.stop(),
            81..85 => {
                self.break_something();
                self.work(30)
            }
            85..88 => {
                self.fill_up();
                self.work(30)
            }
            88..91 => {
                self.repair();
                Ok(())
            }
            91..95 => {
                self.replay_or_discard();
                self.work(10)
            }
            95..97 => {
                self.pause_or_resume();
                self.work(10)
            }
            _ => {
                self.reconfigure();
                self.work(10)
            }
        }
    }

    fn work(&mut self, steps: usize) -> Check {
        if let Some(process) = &mut self.process {
            for _ in 0..steps {
                if !process.step(&mut self.out)? {
                    break;
                }
            }
        }
        Ok(())
    }

    fn come_to_rest(&mut self) -> Check {
        if !self.rest()? {
            return Ok(());
        }
        // What others made due is found within one look at the index.
        self.advance(DUE_POLL_MS);
        if !self.rest()? {
            return Ok(());
        }
        if let Some(process) = &self.process {
            process.nothing_due_waits(&self.out)?;
        }
        if self.chance(40) { self.check_index().map(|_| ()) } else { Ok(()) }
    }

    /// Until nothing is left to do at this moment. False where the disk does not allow it.
    fn rest(&mut self) -> Result<bool, String> {
        let Some(process) = &mut self.process else { return Ok(false) };
        for _ in 0..if self.trouble { 500 } else { STEPS_MAX } {
            if !process.step(&mut self.out)? {
                return Ok(!self.trouble && process.is_healthy());
            }
        }
        if self.trouble { Ok(false) } else { Err("it does not come to rest".to_owned()) }
    }

    // --- senders ---

    fn send(&mut self) -> Check {
        let rng = &mut self.out.rng;
        let id = if self.ids == 0 || rng.u8(..) < 170 {
            self.ids += 1;
            self.ids
        } else {
            rng.usize(1..=self.ids)
        };
        let kind = KINDS[id % KINDS.len()];
        let version = if rng.u8(..) < 30 { rng.u8(1..4) } else { 0 };
        let (from, padding) = (id % 3, "x".repeat(id * 37 % 300));
        let text = format!("{version}{padding}");
        let signed = format!(
            r#"{{"eventId":"e{id}","type":"{kind}","data":{{"from":"+1555{from}","to":"+49{from}","text":"{text}"}}}}"#
        );
        let signature = sign_hex(&self.policy.secrets[0], signed.as_bytes());
        let (raw, is_forged) = match rng.u8(0..20) {
            0 => (signed.replace(&text, "forged"), true),
            1 => (signed.replace(r#"","#, "\",\n  "), false),
            _ => (signed.clone(), false),
        };
        let headers = vec![(self.policy.header.clone(), signature.into_bytes())];
        let now = self.out.clock.now().wall;
        let given = headers.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
        let verified = match verify(&self.policy, given, raw.as_bytes(), now) {
            Err(_) if is_forged => return Ok(()),
            Ok(_) if is_forged => return Err("I2: a forged request was verified".to_owned()),
            Err(why) => return Err(format!("I2: a signed request was refused: {why:?}")),
            Ok(verified) => verified,
        };
        let body = verified.canonical.unwrap_or(raw.into_bytes());
        self.out.model.signed.insert(signed.into_bytes());
        let envelope = Envelope::parse(&body);
        let event = NewEvent {
            source: "bluereplies".to_owned(),
            id: envelope.id.clone().unwrap_or_default(),
            conversation: envelope.conversation(),
            kind: envelope.kind,
            received_at: now,
            headers,
            verified_by: verified.by,
            body: body.into(),
            imported: false,
        };
        if let Some(process) = &mut self.process {
            process.arrive(event, &mut self.out);
        }
        Ok(())
    }

    // --- time ---

    fn advance(&mut self, ms: i64) {
        self.out.clock.advance(Duration::from_millis(ms.max(1).unsigned_abs()));
    }

    /// How long until something is due.
    fn until_next(&self) -> Option<i64> {
        let process = self.process.as_ref()?;
        let now = process.now(&self.out);
        let next_due = |h: &SimHandler| {
            process.read(|view| view.next_due(&h.plan.name, now).ok().flatten()).flatten()
        };
        let configured = self.out.handlers.iter().filter(|h| h.configured);
        let due = configured.filter_map(next_due).map(|due| due.0 - now.0).min();
        let end = process.replayer.next_end().map(|end| end - self.out.clock.now().boot_ms);
        // What is due waits for its handler's next probe.
        let circuits = process.replayer.planner.snapshot().into_iter().filter_map(|h| h.circuit);
        let probe = circuits.map(|open| open.next_probe.0 - now.0).filter(|ms| *ms > 0).min();
        due.into_iter().chain(end).chain(probe).min()
    }

    fn let_time_pass(&mut self) {
        let ms = match self.out.rng.u8(0..10) {
            0..3 => self.out.rng.i64(1..100),
            3..6 => self.out.rng.i64(100..5_000),
            6..9 => self.until_next().unwrap_or(1_000),
            _ => self.out.rng.i64(0..7_200_000),
        };
        self.advance(ms);
    }

    fn jump(&mut self) {
        let wall = self.out.clock.now().wall.0;
        let by = self.out.rng.i64(-3 * YEAR_MS..3 * YEAR_MS);
        self.out.clock.set_wall(Timestamp((wall + by).max(0)));
    }

    // --- ends and starts ---

    /// The process dies; the machine goes on, and what was written stays.
    fn kill(&mut self) -> Check {
        self.end_process();
        if self.chance(60) {
            self.kv.clear();
        }
        let kept = self.out.rng.usize(0..=self.kv.unflushed());
        self.forget_index_after(kept);
        self.start()
    }

    fn cut_power(&mut self) -> Check {
        self.end_process();
        self.lose_power();
        self.start()
    }

    /// A clean stop; then, perhaps, a reboot.
    fn stop(&mut self) -> Check {
        self.repair();
        if let Some(process) = self.process.take() {
            process.stop(&mut self.out)?;
        }
        if self.chance(128) {
            self.reboot();
        }
        self.start()
    }

    fn end_process(&mut self) {
        self.out.tell(|| "  the process dies".to_owned());
        if let Some(process) = self.process.take() {
            process.die(&mut self.out);
        }
    }

    fn forget_index_after(&mut self, kept: usize) {
        self.kv.crash(kept);
        // What is left now is on disk.
        bluehook::store::index::Kv::flush(&self.kv).unwrap();
    }

    fn lose_power(&mut self) {
        self.out.tell(|| "  the power goes".to_owned());
        self.power_cuts += 1;
        self.out.memory.clone().crash(&mut self.out.rng);
        self.forget_index_after(0);
        self.reboot();
    }

    fn reboot(&mut self) {
        let wall = self.out.clock.now().wall;
        let wall = match self.out.rng.u8(0..6) {
            0 => Timestamp::ZERO,
            1 => Timestamp(wall.0 + YEAR_MS),
            _ => Timestamp(wall.0 + self.out.rng.i64(0..600_000)),
        };
        self.out.clock.reboot(wall);
    }

    /// Through faults, full disks and further crashes.
    fn start(&mut self) -> Check {
        loop {
            if self.chance(40) && !self.out.calm {
                self.break_something();
            }
            match Process::open(&self.disk, &self.kv, &mut self.out)? {
                Opened::Refused(why) if !self.trouble => {
                    return Err(format!("I8: it does not start: {why}"));
                }
                Opened::Refused(_) => {
                    self.repair();
                    if self.chance(100) {
                        self.lose_power();
                    }
                }
                Opened::Running(process) => {
                    self.process = Some(process);
                    self.check_recovery()?;
                    self.out.tell(|| {
                        format!("  started {:?}", self.process.as_ref().map(|p| p.durable()))
                    });
                    if self.out.calm || !self.chance(40) {
                        return Ok(());
                    }
                    // It did not get far.
                    let steps = self.out.rng.usize(0..30);
                    self.work(steps)?;
                    self.end_process();
                    if self.chance(128) {
                        self.lose_power();
                    } else {
                        let kept = self.out.rng.usize(0..=self.kv.unflushed());
                        self.forget_index_after(kept);
                    }
                }
            }
        }
    }

    // --- the disk ---

    fn break_something(&mut self) {
        self.trouble = true;
        let calls = [
            None,
            Some(Call::Write),
            Some(Call::SyncData),
            Some(Call::SyncAll),
            Some(Call::SetLen),
            Some(Call::SyncDir),
            Some(Call::Open),
            Some(Call::Read),
        ];
        if self.chance(60) {
            self.out.memory.set_sync_fails(true);
            return;
        }
        let rng = &mut self.out.rng;
        let error =
            if rng.bool() { std::io::ErrorKind::StorageFull } else { std::io::ErrorKind::Other };
        let call = calls[rng.usize(..calls.len())];
        self.fault.fail(Fault { call, nth: rng.u64(1..12), error, sticky: rng.u8(..) < 80 });
    }

    fn fill_up(&mut self) {
        self.trouble = true;
        self.out.memory.set_capacity(None);
        let space = self.disk.space(&data_dir()).ok();
        let used = space.map_or(0, |s| s.total - s.free);
        let left = self.out.rng.u64(0..3 * RESERVE_BYTES);
        self.out.memory.set_capacity(Some(used + left));
    }

    fn repair(&mut self) {
        self.fault.heal();
        self.out.memory.set_sync_fails(false);
        self.out.memory.set_capacity(None);
        self.trouble = false;
    }

    // --- people ---

    fn some_handler(&mut self) -> HandlerName {
        let n = self.out.rng.usize(..self.out.handlers.len());
        self.out.handlers[n].plan.name.clone()
    }

    fn replay_or_discard(&mut self) {
        let handler = self.some_handler();
        let discards = self.chance(80);
        let pick = self.out.rng.usize(..);
        let Some(process) = &mut self.process else { return };
        let heads = process.read(|view| view.heads_from(1, 1_000).ok()).flatten();
        let (heads, _) = heads.unwrap_or_default();
        if heads.is_empty() {
            return;
        }
        let key = DeliveryKey { event: heads[pick % heads.len()].seq, handler };
        if discards {
            // As `dead discard`: what is not dead has nothing to discard.
            let delivery = process.read(|view| view.delivery(&key).ok().flatten()).flatten();
            if !delivery.is_some_and(|d| matches!(d.state, State::Dead { .. })) {
                return;
            }
            process.administer(&Record::Discarded { key }, Input::Nudge);
        } else {
            let due = process.now(&self.out);
            process.administer(&Record::Replayed { key, due }, Input::Nudge);
        }
    }

    fn pause_or_resume(&mut self) {
        let handler = self.some_handler();
        let paused = self.chance(100);
        if let Some(process) = &mut self.process {
            process.set_paused(handler, paused);
        }
    }

    fn reconfigure(&mut self) {
        let n = self.out.rng.usize(..self.out.handlers.len());
        self.out.handlers[n].configured ^= true;
        if let Some(process) = &mut self.process {
            process.configure(&self.out);
        }
    }

    // --- what must hold ---

    fn check_recovery(&mut self) -> Check {
        let Some(process) = &self.process else { return Ok(()) };
        let log = Model::read_log(&self.out.reader(), process.durable())?;
        self.out.model.mark_lost(&log);
        self.out.model.audit_log(&log)
    }

    /// Faults stop and handlers succeed: everything comes to its end.
    fn end(&mut self) -> Check {
        self.repair();
        self.out.calm = true;
        for handler in &mut self.out.handlers {
            handler.configured = true;
        }
        if self.chance(128) {
            self.cut_power()?;
        }
        // A log that was broken is reopened.
        self.rest()?;
        let process = self.process.as_mut().ok_or("it does not run")?;
        process.configure(&self.out);
        for n in 0..self.out.handlers.len() {
            process.set_paused(self.out.handlers[n].plan.name.clone(), false);
        }
        let mut quiet = 0;
        for _ in 0..10_000 {
            self.come_to_rest()?;
            let next = self.until_next();
            quiet = if next.is_some() { 0 } else { quiet + 1 };
            if quiet > 5 {
                break;
            }
            self.advance(next.unwrap_or(1_100));
        }
        self.check_everything()?;
        self.cut_power()?;
        self.come_to_rest()?;
        self.check_everything()
    }

    fn check_everything(&mut self) -> Check {
        let log = self.check_index()?;
        let wanted: Vec<Wanted> = (self.out.handlers.iter())
            .map(|h| Wanted { handler: h.plan.name.clone(), kind: h.kind })
            .collect();
        let process = self.process.as_ref().ok_or("it does not run")?;
        let settled = process.read(|view| self.out.model.is_settled(view, &log, &wanted));
        settled.unwrap_or_else(|| Err("there is no index".to_owned()))
    }

    /// Once it has nothing to do, the index is what the log makes it.
    fn check_index(&mut self) -> Result<Vec<Logged>, String> {
        let reader = self.out.reader();
        let process = self.process.as_ref().ok_or("it does not run")?;
        let log = Model::read_log(&reader, process.durable())?;
        self.out.model.audit_log(&log)?;
        if process.applied() != process.durable() {
            return Err("I8: the index does not catch up".to_owned());
        }
        let audited = process.read(|view| self.out.model.audit_index(view, &log));
        audited.unwrap_or_else(|| Err("there is no index".to_owned()))?;
        process.compare_with_rebuilt(&reader)?;
        Ok(log)
    }
}
