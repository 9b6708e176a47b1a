/* lying_disk.h: what a folder may look like after a power loss. The calls are made on a real folder, which thus plays
 * the page cache; this model keeps beside it what a disk must hold and what it merely may hold, and lose_power replaces
 * the real folder by one of the states the disk may be in. Small folders only: everything is in memory.
 *
 * The rules are POSIX's, weaker than those of any one file system:
 * - Bytes, length and allocation of a file are certain once that file was synced without error. Until then each sector
 *   (512 bytes of one write) is kept, dropped or, where the length got through, garbled, in any combination.
 * - Names are certain once their folder was synced: creating, renaming, removing and making folders are kept or dropped
 *   each alone, in any combination that is still possible (a rename needs its source). Syncing a file does not make its
 *   name certain, syncing a folder not what is in its files, and folders do not wait for each other: a file's removal
 *   may get through although the earlier renaming of its folder did not.
 * - A rename is atomic: the old name or the new one. Renames between folders are not modelled.
 * - What a failed sync left unwritten stays uncertain for ever, even when a later sync of the same file or folder says
 *   success, as Linux marks such pages clean.
 * What was there when the model was opened is certain. Links, truncation and writes other than at the end of what the
 * descriptor wrote before are not modelled; the program under test makes none. */
#ifndef GROUTER_LYING_DISK_H
#define GROUTER_LYING_DISK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct lying_disk lying_disk;

/* `root` exists; calls on paths outside it leave no trace in the model. */
lying_disk *lying_disk_open(const char *root);
void lying_disk_close(lying_disk *d);

/* Each is called after the call succeeded on the real folder. */
void lying_disk_opened(lying_disk *d, const char *path, int fd); /* creates the name if it is new */
void lying_disk_wrote(lying_disk *d, int fd, const void *data, size_t n_byte);
void lying_disk_allocated(lying_disk *d, int fd, uint64_t n_byte);
void lying_disk_synced(lying_disk *d, int fd);
void lying_disk_closed(lying_disk *d, int fd);
void lying_disk_renamed(lying_disk *d, const char *from, const char *to);
void lying_disk_made(lying_disk *d, const char *path);
void lying_disk_removed(lying_disk *d, const char *path); /* file or empty folder */

/* Called after a sync that failed. */
void lying_disk_sync_failed(lying_disk *d, int fd);

/* Makes the real folder one of the possible states. The seed chooses: seed % 3 = 0 loses all that is uncertain, 1 keeps
 * all names and loses or garbles the bytes, 2 decides name by name and sector by sector. The model ends here. */
void lying_disk_lose_power(lying_disk *d, uint64_t seed);

/* Removes everything in a folder, or the folder too. */
void lying_folder_clear(const char *path);
void lying_folder_remove(const char *path);

#endif
