//! What is written.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::oneshot;

use super::dedup::{Dedup, Seen};
use super::index::keys::CONFLICTS_MAX;
use super::log::{Appender, Priority, Receipt, Told};
use super::record::{self, ConflictBody, EventRecord, Record, RepeatRecord};
use super::{AppendError, Store};
use crate::delivery::{HandlerName, Seq};
use crate::event::{DedupKey, NewEvent, body_hash, dedup_key};

/// How long an event may wait for the index to come up. The sender gives up after 5 s.
const INDEX_WITHIN: Duration = Duration::from_secs(2);

/// Settles the key on the appender's thread, whether or not the caller still waits.
struct FirstCopy {
    dedup: Arc<Dedup>,
    key: DedupKey,
    tell: Option<oneshot::Sender<Result<Receipt, AppendError>>>,
}

impl FirstCopy {
    fn settle(&mut self, result: Result<Receipt, AppendError>) {
        if let Some(tell) = self.tell.take() {
            self.dedup.settle(&self.key, result.map(|receipt| receipt.seq()));
            // The caller may have given up.
            _ = tell.send(result);
        }
    }
}

impl Told for FirstCopy {
    fn hear(mut self: Box<Self>, result: Result<Receipt, AppendError>) {
        self.settle(result);
    }
}

impl Drop for FirstCopy {
    fn drop(&mut self) {
        self.settle(Err(AppendError::Closed));
    }
}

impl Store {
    fn appender(&self) -> Result<&Appender, AppendError> {
        self.inner.appender.as_ref().ok_or(AppendError::Closed)
    }

    /// Stores an event, or finds that it is there already. Returns only when it is durable.
    ///
    /// # Errors
    /// See [`AppendError`]: the event may or may not become durable; the sender must try again.
    pub async fn append_event(&self, event: NewEvent) -> Result<Receipt, AppendError> {
        let appender = self.appender()?;
        let key = Store::dedup_key_of(&event);
        let hash = body_hash(&event.body);
        let enter = || {
            self.inner.dedup.enter(key, hash, || {
                self.read(|view| view.id(&key)).flatten().map(|known| (known.seq, known.body_hash))
            })
        };
        let mut seen = enter();
        if matches!(seen, Seen::Busy) {
            // Slower answers slow a sender down; a refusal makes it come again later, with the same.
            let mut progress = self.progress();
            let deadline = tokio::time::Instant::now() + INDEX_WITHIN;
            while matches!(seen, Seen::Busy) {
                match tokio::time::timeout_at(deadline, progress.changed()).await {
                    Ok(Ok(())) => seen = enter(),
                    Ok(Err(_)) => return Err(AppendError::Closed),
                    Err(_) => return Err(AppendError::Busy),
                }
            }
        }
        match seen {
            Seen::First => self.append_first(appender, key, event).await,
            Seen::Writing(settled) => {
                let (seq, body_hash) = settled.await.unwrap_or(Err(AppendError::Closed))?;
                self.repeat(appender, seq, event, body_hash != hash).await
            }
            Seen::Durable { body_hash, seq } => {
                self.repeat(appender, seq, event, body_hash != hash).await
            }
            Seen::Busy => Err(AppendError::Busy),
        }
    }

    /// The end of the append is heard of even if the caller gives up waiting.
    async fn append_first(
        &self,
        appender: &Appender,
        key: DedupKey,
        event: NewEvent,
    ) -> Result<Receipt, AppendError> {
        let (tell, told) = oneshot::channel();
        let dedup = self.inner.dedup.clone();
        let disk_max = self.inner.options.retention.disk_max;
        if self.inner.full.load(Ordering::Relaxed) || appender.log_bytes() > disk_max {
            dedup.settle(&key, Err(AppendError::Full));
            return Err(AppendError::Full);
        }
        // From here on the claim ends, whatever happens.
        let told_first = FirstCopy { dedup, key, tell: Some(tell) };
        let (kind, payload) = record::encode(&Record::Event(EventRecord::from(event)));
        appender.submit_telling(kind, payload, Priority::Event, Box::new(told_first));
        told.await.unwrap_or(Err(AppendError::Closed))
    }

    /// Counts a further copy. A body that differs is kept, and as durable as the first before it is
    /// acknowledged; a mere count is not waited for.
    async fn repeat(
        &self,
        appender: &Appender,
        of: Seq,
        event: NewEvent,
        differs: bool,
    ) -> Result<Receipt, AppendError> {
        let kept = self.read(|view| view.repeats(of)).map_or(0, |r| r.conflicts.len());
        let keep = differs && kept < CONFLICTS_MAX;
        let received_at = event.received_at;
        let conflict =
            keep.then(|| ConflictBody { headers: event.headers, body: event.body.into() });
        let record = RepeatRecord { of, received_at, conflict, carried_from: None };
        let (kind, payload) = record::encode(&Record::Repeat(record));
        if keep {
            appender.durable(kind, payload).await?;
        } else {
            drop(appender.submit_written(kind, payload, Priority::Event));
        }
        appender.duplicate_of(of).ok_or(AppendError::Failed)
    }

    /// Logs bookkeeping: returns when written (a crash of the process keeps it), not when synced.
    ///
    /// # Errors
    /// As above.
    pub async fn append(&self, record: Record) -> Result<Seq, AppendError> {
        let (kind, payload) = record::encode(&record);
        self.appender()?.written(kind, payload).await
    }

    /// As `append`, for records of which none makes sense without those before it, nor without all that
    /// was logged as of `Progress::log_epoch`: all of them, one after the other, or none. Gives the
    /// number of the last. Refused with `Failed` where the log was reopened since.
    ///
    /// # Errors
    /// As above.
    pub async fn append_in(&self, log_epoch: u64, records: &[Record]) -> Result<Seq, AppendError> {
        let records = records.iter().map(record::encode).collect();
        self.appender()?.written_in(log_epoch, records).await
    }

    /// As `append_in`, but durable when it returns.
    ///
    /// # Errors
    /// As above.
    pub async fn append_durable_in(
        &self,
        log_epoch: u64,
        records: &[Record],
    ) -> Result<Seq, AppendError> {
        let records = records.iter().map(record::encode).collect();
        self.appender()?.durable_in(log_epoch, records).await
    }

    /// While this is held retention drops nothing: for whoever changes what is settled, from the record to
    /// its being in the index.
    pub async fn hold_retention(&self) -> tokio::sync::RwLockReadGuard<'_, ()> {
        self.inner.changing.read().await
    }

    /// As `append`, but durable when it returns.
    ///
    /// # Errors
    /// As above.
    pub async fn append_durable(&self, record: Record) -> Result<Receipt, AppendError> {
        let (kind, payload) = record::encode(&record);
        let done = self.appender()?.submit_durable(kind, payload, Priority::Bookkeeping);
        done.await.unwrap_or(Err(AppendError::Closed))
    }

    /// The handlers that are configured: retention keeps what they have not considered yet. Others are
    /// parked; only their deliveries hold an event.
    pub fn set_active_handlers(&self, handlers: Vec<HandlerName>) {
        *self.active() = Some(handlers);
    }

    #[must_use]
    pub fn dedup_key_of(event: &NewEvent) -> DedupKey {
        dedup_key(&event.source, &event.id)
    }
}
